"""The world is deterministic, its captions are true for a detector that reads pixels only, some of it is held out."""

import itertools

import numpy as np
import pytest
from helios_benchmarks.detector import detect, object_colour
from helios_training import world


def test_a_seed_gives_the_same_pixels_whatever_part_is_asked_for():
    scene = world.draw_scene(7)
    whole = world.render(scene, 128, 64, 0, 60)
    assert np.array_equal(whole[20:45], world.render(world.draw_scene(7), 128, 64, 20, 25))
    assert not np.array_equal(whole[:20], world.render(world.draw_scene(8), 128, 64, 0, 20))


@pytest.mark.parametrize(("width", "height"), [(64, 64), (192, 128), (320, 192)])
def test_every_size_shows_the_same_scene(width, height):
    scene = world.draw_scene(3, width / height, held_out=True)
    frames = world.render(scene, width, height, 0, 33)
    assert frames.shape == (33, 3, height, width)
    assert frames.min() >= 0
    assert frames.max() <= 1
    assert object_colour(frames) == scene.things[0].colour


@pytest.mark.parametrize("seed", range(12))
def test_the_caption_is_what_the_detector_sees(seed):
    scene = world.draw_scene(2000 + seed, held_out=True)
    seen = detect(world.render(scene, 128, 64, 0, 99))
    told = world.caption(scene, 0)
    assert f"{seen.colour} {seen.kind} {world.PHRASES[seen.motion]}" in told
    assert world.BACKGROUNDS[seen.background][0] in told[0].lower() + told[1:]


def test_an_event_changes_the_picture_when_its_caption_says_so():
    scene = next(
        scene
        for scene in map(world.draw_scene, range(500))
        if scene.event is not None and scene.event.what == "colour" and len(scene.things) == 1
        and scene.event.frame % world.CHUNK_FRAMES > 8 and "then" in world.caption(scene, scene.event.frame // 33)
    )  # fmt: skip
    event = scene.event
    assert event is not None
    told = world.caption(scene, event.frame // world.CHUNK_FRAMES)
    before, after = (object_colour(world.render(scene, 128, 64, first, 6)) for first in (event.frame - 6, event.frame))
    assert before == scene.things[0].colour
    assert after == event.value
    assert f"then it turns {after}" in told
    assert f" {after} " in world.caption(scene, event.frame // world.CHUNK_FRAMES + 1).replace(".", " ")


def test_motion_goes_on_from_about_where_it_was_at_an_event():
    """A circle or a bounce begins inside the picture, which is the only jump there is."""
    scenes = [scene for scene in map(world.draw_scene, range(200)) if scene.event and scene.event.what == "motion"]
    for scene in scenes:
        frame = scene.event.frame
        before, after = (scene.things_at(at)[0].positions(np.array([frame]), scene.aspect)[0] for at in (0, frame))
        assert np.abs(before - after).max() < (0.3 if scene.event.value in ("circle", "bounce") else 0.12)


def test_at_least_a_tenth_is_held_out_and_never_drawn():
    every = list(itertools.product(world.KINDS, world.COLOURS, world.MOTIONS, world.BACKGROUNDS))
    held_out = set(filter(world.is_held_out, every))
    assert 0.10 <= len(held_out) / len(every) <= 0.2
    drawn = {c for seed in range(2000) for c in world.draw_scene(seed).combinations()}
    assert len(drawn) > 400
    assert not drawn & held_out
    assert all(next(world.draw_scene(seed, held_out=True).combinations()) in held_out for seed in range(100))
