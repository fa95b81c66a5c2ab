"""Sound tracks that AAC lacks."""

import pytest
import torch

from helios_core.errors import HeliosError
from helios_core.video.audio import check_audio


@pytest.mark.parametrize(
    ("shape", "rate", "message"),
    [((1, 3, 100), 44100, "channels"), ((2, 100), 44100, "channels"), ((1, 2, 100), 12345, "resample it to 12000")],
)
def test_audio_that_aac_lacks_is_refused(shape, rate, message):
    with pytest.raises(HeliosError, match=message):
        check_audio({"waveform": torch.zeros(shape), "sample_rate": rate})
