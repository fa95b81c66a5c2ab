"""What the templates look like and say: one entry for each file of workflows/api."""

from __future__ import annotations

import json
from dataclasses import dataclass
from textwrap import dedent
from typing import Any

from helios_core.variants import CHUNK_FRAMES, FPS
from helios_setup.paths import API_WORKFLOWS

from .template_layout import Column, Group, Note

BLUE, GREEN, YELLOW, TEAL, RED = "#3f789e", "#8A8", "#b58b2a", "#8AA", "#A88"

# Every link goes from a column to one on its right.
COLUMNS = (
    Column(
        width=340,
        groups=(
            Group("Model", BLUE, ("HeliosLoadModel",)),
            Group("Input", GREEN, ("LoadImage", "LoadVideo")),
            Group("Steps", TEAL, ("HeliosBaseSampler", "HeliosPyramidSampler", "HeliosDMDSampler")),
        ),
    ),
    Column(
        width=360,
        groups=(
            Group("Prompt", YELLOW, ("CLIPTextEncode",)),
            Group("Start and size", GREEN, ("HeliosEmptyHistory", "HeliosImageHistory", "HeliosVideoHistory")),
        ),
    ),
    Column(
        width=330,
        groups=(Group("Schedule", YELLOW, ("HeliosPromptSchedule",)), Group("Hold", GREEN, ("HeliosAntiDrift",))),
    ),
    Column(width=380, groups=(Group("Chunks", BLUE, ("HeliosSampleChunk", "HeliosChunkChain")),)),
    Column(width=300, groups=(Group("Frames", BLUE, ("LatentConcat", "HeliosDecode", "BatchImagesNode")),)),
    Column(width=440, groups=(Group("Video", RED, ("HeliosRenderVideo", "HeliosLiveVideo", "CreateVideo")),)),
    Column(width=400, groups=(Group("File", RED, ("SaveVideo",)),)),
    Column(
        width=500,
        groups=(Group("Report", TEAL, ("HeliosDriftReport",)), Group("Afterwards", TEAL, ("HeliosProcessVideo",))),
    ),
    Column(width=440, groups=(Group("In words", TEAL, ("PreviewAny",)),)),
)
# Room for a paragraph, the film strip of a running take, and the finished video.
HEIGHTS = {
    "HeliosLoadModel": 370.0,
    "CLIPTextEncode": 160.0,
    "LoadImage": 360.0,
    "LoadVideo": 360.0,
    "HeliosChunkChain": 560.0,
    "HeliosRenderVideo": 760.0,
    "HeliosLiveVideo": 1060.0,
    "SaveVideo": 440.0,
    "HeliosDriftReport": 620.0,
    "HeliosProcessVideo": 620.0,
    "PreviewAny": 320.0,
}


@dataclass(frozen=True)
class Template:
    """How the graph workflows/api/`api`.json appears in the template browser, and its notes.

    ``section`` and ``use`` are written on its picture: the frontend shows no description of a pack's template.
    """

    api: str
    title: str
    section: str
    use: str
    notes: tuple[Note, ...]

    @property
    def variant(self) -> str:
        return self.api.split("_")[1]


def graph_of(template: Template) -> dict[str, Any]:
    """Its API graph."""
    return json.loads((API_WORKFLOWS / f"{template.api}.json").read_text(encoding="utf-8"))


# Frames a second on an H100, from the paper; Mid's are not published.
PUBLISHED_RATES = {"distilled": 19.53, "base": 0.54}


def cost(template: Template) -> str:
    """How long the film is, and what it takes with the released weights; computed."""
    nodes = graph_of(template).values()
    chunks = sum(
        node["inputs"].get("num_chunks", node["inputs"].get("max_chunks", node["class_type"] == "HeliosSampleChunk"))
        for node in nodes
    )
    frames, rate = chunks * CHUNK_FRAMES, PUBLISHED_RATES.get(template.variant)
    time = "time not published" if rate is None else f"about {_seconds(frames / rate)} on an H100"
    return f"{_seconds(frames / FPS)} of film, {time}; from 12 GB of VRAM (computed)"


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def note(title: str, text: str) -> Note:
    return Note(title, dedent(text).strip())


def weights(variant: str) -> Note:
    """How to begin: what runs at once, and how the released model comes here."""
    return note(
        "Before the first run",
        f"""
        # 1. Press Run. It works at once.

        It runs on whatever is there. **Helios Load Model** says which model that is; without weights it is a small \
        one that comes with the nodes and shows that everything works.

        # 2. Press Download Helios-{variant} for the real model: 80 GB.

        The button is in the node Helios Load Model. Or download the whole folder \
        [BestWishYsh/Helios-{variant}](https://huggingface.co/BestWishYsh/Helios-{variant}) yourself:

        > hf download BestWishYsh/Helios-{variant} --local-dir models/diffusers/Helios-{variant}

        Then press R, and Run again.
        """,
    )


SIZES = {"Base": "multiples of 16", "Mid": "multiples of 64", "Distilled": "multiples of 64"}
STEPS = {
    "Base": "50 is the released setting; fewer are faster.",
    "Mid": "20, 20, 20 is the released setting, coarse to fine; 17, 17, 17 is nearly as good.",
    "Distilled": "2, 2, 2 is the released setting; 1, 1, 1 takes about half the time.",
}
GUIDANCE = {
    "Base": "5.0 is the released setting.",
    "Mid": "5.0 is the released setting.",
    "Distilled": "leave it at 1.0, for which the model was distilled. The negative prompt counts only above 1.",
}
HEADLINES = {
    "t2v": "Write a prompt, choose num_chunks (1.4 s each), press Run.",
    "i2v": "Choose an image, write what happens, press Run.",
    "v2v": "Choose a clip, write how it goes on, press Run.",
}
USES = {
    "t2v": "A paragraph becomes a video.",
    "i2v": "Your image moves.",
    "v2v": "Your clip goes on.",
}
TASKS = {
    "t2v": ("Text to Video", ""),
    "i2v": (
        "Image to Video",
        """
        - **First frame**: your image. It is scaled to cover the size and cropped at the centre.
        - **noise_sigma**: if the first chunk stands still, raise both, or switch skip_first_chunk on.
        """,
    ),
    "v2v": (
        "Video to Video",
        """
        - **Clip to continue**: your clip, at least 33 frames, best at 24 fps. The file holds it and what follows.
        """,
    ),
}


def changes(variant: str, task: str) -> Note:
    """What a user turns first."""
    return note(
        "What to change",
        f"# {HEADLINES[task]}\n\n"
        + dedent(TASKS[task][1]).lstrip()
        + "- **Prompt**: one flowing paragraph works best, with subject, action, setting, light and camera.\n"
        "- **num_chunks**: the length. A chunk is 33 frames, 1.4 seconds; 44 chunks are a minute.\n"
        "- **seed**: another number gives another video, the same number the same video.\n"
        "- **width, height**: come from the model, 640 x 384 for released ones. Remove the two links to type others, "
        f"{SIZES[variant]}.\n"
        f"- **steps**: {STEPS[variant]}\n"
        f"- **cfg**: {GUIDANCE[variant]}",
    )


MORE = {
    "Mid": "With guidance and a negative prompt.",
    "Base": "50 full steps, to compare and to train on.",
}


def released(variant: str, task: str, section: str) -> Template:
    """The template of one variant and task."""
    return Template(
        f"helios_{variant.lower()}_{task}",
        f"Helios {variant} - {TASKS[task][0]}",
        section,
        USES[task] + ("" if variant == "Distilled" else f" {MORE[variant]}"),
        (weights(variant), changes(variant, task)),
    )


READING = note(
    "How to read it",
    """
    # A curve a measure, over the chunks.

    The shaded ends are compared. **Red** is a change worth a look. Bars are the \
    seams between chunks: 1 is as inside a chunk, above 2 shows.

    It needs OpenCV and matplotlib; the node says how to install them.
    """,
)


# In the order of their pictures' numbers.
TEMPLATES = (
    released("Distilled", "t2v", "Start here"),
    released("Distilled", "i2v", "Image"),
    released("Distilled", "v2v", "Video"),
    Template(
        "helios_distilled_long_video",
        "Helios Distilled - Long Video",
        "Long",
        "A minute straight to disk; goes on after a stop.",
        (
            weights("Distilled"),
            note(
                "What to change",
                """
                # Press Run: a minute, straight to disk. Stopped? Run again.

                - **num_chunks**: 44 chunks of 33 frames are a minute. Memory stays the same however long the film is.
                - **Stopped?** Queue it again: it goes on at the first missing chunk. More chunks extend the film.
                - **filename_prefix**: the film. A playable file of what is finished lies beside it meanwhile.
                - **quality**: lower is better and larger; changing it encodes again and samples nothing.
                - **The film strip** shows every chunk as it is made; click one to play it, or to render again from it.
                - **Several prompts**: put a Helios Prompt Schedule (Text) in between. A changed row makes only what \
                follows again.
                """,
            ),
        ),
    ),
    Template(
        "helios_distilled_anchored_minute",
        "Helios - Anchored Minute",
        "Long",
        "A minute that holds to your image.",
        (
            weights("Distilled"),
            note(
                "What to change",
                """
                # Choose an image: the minute holds to it.

                - **First frame**: your image. It stays the film's anchor, which every chunk is shown.
                - **Anti-Drift** steps in where a chunk departs from the film so far; the film strip marks it. \
                Bypass the node, and the film is the reference's.
                - **threshold**: less steps in more often.
                - **Another scene in the middle**: put Helios Anchor History behind its first chunk.
                - **Colours of finished frames**: Helios Colour Anchor behind Helios Decode.
                """,
            ),
            READING,
        ),
    ),
    Template(
        "helios_distilled_interactive",
        "Helios Distilled - Interactive Prompts",
        "Interactive",
        "Prompts that change on the way.",
        (
            weights("Distilled"),
            note(
                "What to change",
                """
                # Write prompts, and the chunk each begins at: 1.4 s a chunk.

                - **Prompt 1, 2, 3**: what happens, one paragraph each. Connect more to the schedule as you like.
                - **first_chunks**: the chunk each prompt begins at. A chunk is 33 frames, 1.4 seconds.
                - **blend**: chunks over which a new prompt takes over; 3 is the released setting.
                - **num_chunks**: the whole length, 21 here: 29 seconds.

                Changing a later prompt leaves the chunks before it exactly as they were.
                """,
            ),
        ),
    ),
    Template(
        "helios_distilled_live",
        "Helios Distilled - Live",
        "Interactive",
        "A film that you direct while it is made.",
        (
            weights("Distilled"),
            note(
                "Direct it",
                """
                # Press Run, then say below the player what happens next.

                The film strip plays the film as it is made.

                - **What happens next?** A sentence and Enter: it holds from the next chunk, or from the one you choose.
                - **Undo** takes back what no chunk has used yet. **Pause** begins no other chunk for now.
                - **Roll again** makes the chosen chunk and what follows anew, with another seed.
                - **Stop** ends the film and writes its file. Run again: it goes on with all you have said.
                - **max_chunks**: 44 here, a minute; 0 goes on until you stop it.
                - **text**: what the film begins with. The small model knows balls, squares, triangles and rings: try \
                "A blue ring bounces off the edges at night."
                - **schedule** and **seed_changes** hold the film as you directed it, for Helios Render Video.
                """,
            ),
        ),
    ),
    Template(
        "helios_distilled_hand_chained",
        "Helios Distilled - Chunks by Hand",
        "By hand",
        "One node a chunk; roll again from any of them.",
        (
            weights("Distilled"),
            note(
                "What to change",
                """
                # One node is one chunk: change its prompt or seed, Run again.

                Each **Sample Chunk** continues the history of the one before it, with its own prompt.

                - **Another seed** in one node rolls the video again from that chunk on; the chunks before it stay.
                - **More chunks**: copy the last Sample Chunk with its prompt, connect its history, and join its latent.
                - With the same prompt and seed everywhere this is the same video as one Chunk Chain, bit for bit.
                """,
            ),
        ),
    ),
    Template(
        "helios_distilled_larger",
        "Helios - Larger and Smoother",
        "Afterwards",
        "A finished film, larger and with more frames.",
        (
            weights("Distilled"),
            note(
                "What to change",
                """
                # A finished film, larger and with more frames: press Run.

                Helios Process Video reads the film from disk, a few frames at a time: memory does not grow with its \
                length. The sound comes along.

                - **scale**: 2 doubles the size without any model.
                - **An upscale model**: connect Load Upscale Model at upscale_model, and set scale to 1; 0.5 halves \
                what a model of 4 times makes.
                - **More frames a second**: connect Load Frame Interpolation Model at interp_model; multiplier says \
                how many.
                - **Any film**: connect Load Video instead of Render Video.
                """,
            ),
        ),
    ),
    Template(
        "helios_distilled_drift_report",
        "Helios - Drift Report",
        "Check",
        "See where a film goes wrong.",
        (
            weights("Distilled"),
            note(
                "What to change",
                """
                # Press Run, then read the plot: red is a change worth a look.

                - **Any film**: connect Load Video to the report instead of Render Video.
                - **prompt_changes**: the chunks at which the prompt changes, like 7, 14. A change there is no fault.
                - **num_chunks**: 14 here, 19 seconds. Drift shows in long films.
                """,
            ),
            READING,
        ),
    ),
    *(released("Mid", task, "Mid") for task in TASKS),
    *(released("Base", task, "Base") for task in TASKS),
)
