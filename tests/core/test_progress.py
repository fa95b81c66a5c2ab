"""What a render says of its progress: from 1, and nothing that is not known."""

from helios_core.take.progress import RenderProgress
from helios_core.variants import CHUNK_FRAMES


def test_a_resumed_render_tells_no_rate_before_it_made_a_chunk():
    progress = RenderProgress([3, 3, 3], started=-1e9)
    progress.reuse()
    assert progress.numbers()["fps"] is None, "the chunk is reused, and not yet done"
    progress.chunk()
    assert progress.numbers() == {"film_seconds": CHUNK_FRAMES / 24, "fps": None, "seconds_left": None}
    assert progress.text("decoding") == "chunk 2/3 decoding, 1.4 s of film"
    progress.step()
    assert 0 <= progress.seconds_left < 60, "the time before the first step, spent on reading, does not count"


def test_a_render_that_made_all_its_chunks_has_no_time_left_to_tell():
    progress = RenderProgress([1])
    progress.step()
    progress.chunk()
    assert progress.numbers()["fps"] > 0
    assert progress.text("writing the file").startswith("chunk 1/1 writing the file, ")
    assert " left" not in progress.text("writing the file")
