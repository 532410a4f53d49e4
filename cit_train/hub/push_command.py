"""`cit push`: upload a model with its card to the hub, or write both to a folder."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from cit_curate.errors import ConfigError, ResourceError, first_line
from cit_curate.printing import print_json
from cit_curate.terminal import print_line
from cit_curate.text_encoder.hub import HUB_PREFIX, HubName, network_errors, refuse_offline

if TYPE_CHECKING:  # imports Arrow, which `--help` must not wait for
    from cit_train.hub.model_files import ExportedModel


def push(
    model: tyro.conf.Positional[Path],
    repo: tyro.conf.Positional[str],
    *,
    dry_run: bool = False,
    out: Path | None = None,
    private: bool = False,
    license: str = "",
    message: str = "",
    json: bool = False,
) -> None:
    """Publish a model with a card that describes the data it was curated from.

    Published are weights (safetensors), configuration, tokenizer, processor and a README.md with
    the fingerprints of pool and metadata, the curation's numbers from the ledger, the evaluations,
    the settings and the names of the 20 classes with the most pairs. The optimizer's state,
    captions, pictures and local paths stay private.

        cit push RUN me/toys --dry-run --out toys
        cit push RUN me/toys --private --license apache-2.0

    Args:
        model: A run (its best checkpoint, else its last), or a checkpoint's folder.
        repo: Repository on the hub: org/name. It is created if necessary.
        dry_run: Only write the folder that would be uploaded; needs --out.
        out: Folder to keep the uploaded files in.
        private: Make a new repository private.
        license: The hub's identifier of the weights' licence, such as apache-2.0.
        message: Message of the commit.
        json: Print one JSON document instead of lines.
    """
    from cit_train.hub.model_files import export_model

    name = _repository(repo)
    if dry_run and out is None:
        raise ConfigError("--dry-run writes a folder: name it with --out FOLDER")
    if not dry_run:
        _check_may_upload()
    with tempfile.TemporaryDirectory(prefix="cit-push-") as temporary:
        exported = export_model(model, out or Path(temporary) / "model", repo=name, license=license)
        url = "" if dry_run else _upload(exported, name, private=private, message=message)
        kept = exported.folder if out else None
    summary = {
        "repo": name,
        "url": url,
        "uploaded": not dry_run,
        "folder": str(kept) if kept else None,
        "update": exported.update,
        "run": str(exported.run) if exported.run else None,
        "files": {
            entry.path: {"bytes": entry.bytes, "sha256": entry.sha256} for entry in exported.files
        },
    }
    _show(summary, as_json=json)


def _repository(repo: str) -> str:
    if "@" in repo:
        raise ConfigError(
            f"{repo}: a push goes to a repository, not to a revision; leave out the @"
        )
    return HubName.parse(repo.removeprefix(HUB_PREFIX)).repo_id


def _check_may_upload() -> None:
    import huggingface_hub

    instead = "or write the folder with --dry-run --out FOLDER"
    refuse_offline(f"nothing can be uploaded; unset it, {instead}")
    if huggingface_hub.get_token() is None:
        raise ConfigError(
            f"the hub does not know who you are: log in with `hf auth login`, {instead}"
        )


def _upload(exported: "ExportedModel", repo: str, *, private: bool, message: str) -> str:
    """Create the repository if necessary and upload the folder as one commit.

    Returns:
        The address of the repository.

    Raises:
        ConfigError: The hub refuses.
        ResourceError: The connection failed.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    api = huggingface_hub.HfApi()
    try:
        # Without --private an existing repository and an organisation's default are unchanged.
        created = api.create_repo(
            repo, repo_type="model", private=True if private else None, exist_ok=True
        )
        api.upload_folder(
            repo_id=created.repo_id,
            repo_type="model",
            folder_path=str(exported.folder),
            commit_message=message or _message(exported),
        )
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in (401, 403, 404):
            raise ConfigError(
                f"the hub does not let you write to {repo} ({status}): check the name, and log in "
                "with a token that may write: `hf auth login`"
            ) from error
        raise ResourceError(f"the upload to {repo} failed: {first_line(error)}") from error
    except network_errors() as error:
        raise ResourceError(
            f"the upload to {repo} failed: {first_line(error)}; run the command again"
        ) from error
    return str(created)


def _message(exported: "ExportedModel") -> str:
    of_update = f" of update {exported.update}" if exported.update is not None else ""
    return f"Upload the dual encoder{of_update} with cit"


def _show(summary: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(summary)
        return
    lines = [
        f"  {name:<28} {entry['bytes'] / 1e6:>10,.3f} MB"
        for name, entry in summary["files"].items()
    ]
    if summary["uploaded"]:
        lines.append(f"uploaded to {summary['url']}")
        lines.append(f"use it with: cit predict hf://{summary['repo']} --image FILE --labels FILE")
    else:
        lines.append(f"not uploaded; the files are in {summary['folder']}")
    for line in lines:
        print_line(line)
