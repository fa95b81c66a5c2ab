"""Downloads a released checkpoint with huggingface_hub: the needed files only, all from one commit.

HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE work as huggingface_hub documents them. A dropped connection is resumed
where it broke; after an interrupted run, finished files are kept and the download continues with the next one.
"""

from __future__ import annotations

import argparse
import errno
import fnmatch
import inspect
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..checkpoint import open_transformer
from ..errors import HeliosError, shortened
from ..variants import DEFAULT, VARIANTS

REPOSITORIES = {name: variant.repository for name, variant in VARIANTS.items()}
# The branch is resolved to a commit once, and every file comes from that commit.
REVISIONS = dict.fromkeys(VARIANTS, "main")
# Not transformer_init/ or transformer_ode/, which only training needs (58 GB).
NEEDED = (
    "model_index.json",
    "scheduler/*.json",
    "transformer/*.json",
    "transformer/*.safetensors",
    "text_encoder/*.json",
    "text_encoder/*.safetensors",
    "tokenizer/*",
    "vae/*.json",
    "vae/*.safetensors",
)
# Called with the bytes that are done and the bytes of the whole download.
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Listing:
    """The needed files of one commit, with their sizes in bytes."""

    repository: str
    commit: str
    sizes: dict[str, int]

    def missing(self, folder: Path) -> dict[str, int]:
        """The files that ``folder`` lacks or holds in another size."""
        return {name: size for name, size in self.sizes.items() if not _has(folder / name, size)}


def download(variant: str, folder: str | Path, on_progress: OnProgress | None = None) -> Path:
    """Downloads a variant into ``folder`` unless it is there already, and checks what arrived.

    Raises:
        HeliosError: unknown variant, no space, no network, a refused token, or a folder of another model.
    """
    folder = Path(folder)
    if variant not in REPOSITORIES:
        raise HeliosError(f"variant={shortened(variant)} is unknown; use one of {', '.join(VARIANTS)}.")
    report = on_progress or (lambda done, total: None)
    try:
        listing = list_needed(variant)
        _check_space(folder, listing)
        _fetch(listing, folder, report)
    except HeliosError:
        raise
    except Exception as error:  # the client raises its HTTP library's own types, which differ between versions
        if _is_offline(error) and _is_complete(folder, variant):
            return folder
        raise _explained(error, variant, folder) from None
    open_transformer(folder, variant)
    return folder


def list_needed(variant: str) -> Listing:
    """Asks the hub which files a variant has; sizes come with the listing, so nothing is downloaded yet."""
    from huggingface_hub import HfApi

    repository = REPOSITORIES[variant]
    info = HfApi().model_info(repository, revision=REVISIONS[variant], files_metadata=True)
    sizes = {
        file.rfilename: file.size or 0
        for file in info.siblings or []
        if any(fnmatch.fnmatchcase(file.rfilename, pattern) for pattern in NEEDED)
    }
    if "model_index.json" not in sizes:
        raise HeliosError(f"{repository} holds no model_index.json; check HF_ENDPOINT.")
    return Listing(repository, info.sha or REVISIONS[variant], sizes)


def _fetch(listing: Listing, folder: Path, report: OnProgress) -> None:
    from huggingface_hub import hf_hub_download

    total, done = sum(listing.sizes.values()), 0
    report(done, total)
    takes_bar = "tqdm_class" in inspect.signature(hf_hub_download).parameters
    for name, size in sorted(listing.sizes.items()):
        extra: Any = {"tqdm_class": _bar_class(done, total, report)} if takes_bar else {}
        hf_hub_download(
            listing.repository,
            name,
            revision=listing.commit,
            local_dir=folder,
            # The client keeps a file that it has a record of, even where it was cut short since.
            force_download=(folder / name).exists() and not _has(folder / name, size),
            **extra,
        )
        done += size
        report(done, total)


def _bar_class(done: int, total: int, report: OnProgress) -> type[tqdm]:
    """A progress bar for huggingface_hub that draws nothing and passes on how far the whole download is."""

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any):
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "disable": True})
            self._arrived = int(kwargs.get("initial") or 0)

        def update(self, n: float | None = 1) -> bool | None:
            self._arrived += int(n or 0)
            report(done + self._arrived, total)
            return super().update(n)

    return Bar


def _has(file: Path, size: int) -> bool:
    return file.is_file() and file.stat().st_size == size


def _check_space(folder: Path, listing: Listing) -> None:
    needed = sum(listing.missing(folder).values())
    place = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise HeliosError(
            f"{folder} needs {needed / 1e9:.1f} GB more and {place} has {free / 1e9:.1f} GB free; free space or choose "
            "another folder."
        )


def _is_offline(error: Exception) -> bool:
    return any(type(cause).__name__ == "OfflineModeIsEnabled" for cause in _causes(error))


def _is_complete(folder: Path, variant: str) -> bool:
    try:
        open_transformer(folder, variant)
    except HeliosError:
        return False
    return True


def _causes(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _explained(error: Exception, variant: str, folder: Path) -> HeliosError:
    """One sentence for what the client raised."""
    repository = REPOSITORIES[variant]
    causes = _causes(error)
    if _is_offline(error):
        return HeliosError(
            f"HF_HUB_OFFLINE is set and {folder} does not hold Helios {variant}; unset it, or copy the model there."
        )
    for cause in causes:
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status in (401, 403):
            return HeliosError(
                f"the hub refused the token for {repository} (HTTP {status}); set HF_TOKEN to a valid token, or unset "
                "it: the model is public."
            )
        if status == 404:
            return HeliosError(f"{repository} was not found (HTTP 404); check HF_ENDPOINT and HF_TOKEN.")
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return HeliosError(f"{folder} is on a full disk; free space and start again: finished files are kept.")
        if isinstance(cause, PermissionError):
            return HeliosError(f"{folder} cannot be written ({cause.strerror}); choose another folder.")
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return HeliosError(
        f"downloading {repository} failed ({reason[:200]}); check the network and start again: finished files are kept."
    )


# --- command line --------------------------------------------------------------------------------------------


def add_command(commands: Any) -> None:
    """Adds ``download`` to the command line's subparsers."""
    command = commands.add_parser("download", help="download a released checkpoint from the Hugging Face hub")
    command.add_argument("--variant", choices=VARIANTS, default=DEFAULT.name)
    command.add_argument("--to", type=Path, metavar="FOLDER", help="default: Helios-Distilled, -Mid or -Base here")
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    folder = options.to or Path(REPOSITORIES[options.variant].rpartition("/")[2])
    with tqdm(unit="B", unit_scale=True, desc=f"Helios {options.variant}") as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        download(options.variant, folder, show)
    print(folder)
