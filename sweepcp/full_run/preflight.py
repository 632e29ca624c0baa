"""Checks that a bundle can be run on this machine, made before anything is written."""

import logging
import socket
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweepcp.config.attention import check_attention
from sweepcp.config.types import COMMIT
from sweepcp.corpora.identity import check_store, identify_tasks
from sweepcp.corpora.permissions import check_permissions
from sweepcp.data.token_store import TokenStore
from sweepcp.errors import InvalidInput, located
from sweepcp.full_run.ending import check_on_first_rank
from sweepcp.models.files import (
    SafetensorsFile,
    fetch_hub_model,
    model_fingerprint,
    read_config,
    read_shards,
)
from sweepcp.promote.bundle import Bundle, CorpusPlan, LoadedBundle, Model
from sweepcp.training.deepspeed_config import check_deepspeed, divides_batch, zero_config
from sweepcp.training.launcher import LaunchedProcess, launched_process
from sweepcp.util.files import file_sha256

if TYPE_CHECKING:
    from sweepcp.training.process_group import ProcessGroup

logger = logging.getLogger(__name__)


def check_ready(bundle: LoadedBundle) -> None:
    """Check the stores, the model and the trackers of a bundle, as far as it takes no reading.

    A hub model is checked by `fetch_model_files` instead.

    Raises:
        InvalidInput: A store is planned, missing or another one, the model's files are missing or
            corrupt, a hub model is not named by its commit, or a tracker is not installed.
    """
    content = bundle.bundle
    with located(bundle.path / "bundle.json"):
        for corpus in content.corpora:
            _check_corpus(corpus)
        for tracker in content.target.tracking:
            if find_spec(tracker) is None:
                raise InvalidInput(
                    key="target.tracking",
                    found=tracker,
                    rule="an installed package",
                    fix=f"pip install {tracker}",
                )
        if content.model.path is None:
            _check_commit(content.model)
        else:
            with located("", "model"):
                read_shards(Path(content.model.path))
                read_config(Path(content.model.path))


def check_content(bundle: LoadedBundle) -> None:
    """Compare the content of stores, model and tasks with the bundle.

    Each file is read once, and again only if its stamps have changed, so one process is enough. A
    hub model is checked by `fetch_model_files` instead.

    Raises:
        InvalidInput: A store, the model or a task was changed, or a task runs code that nobody has
            allowed on this machine.
    """
    content = bundle.bundle
    with located(bundle.path / "bundle.json"):
        for store in stores_of_bundle(content):
            check_store(store)
        if content.model.path is not None:
            _check_fingerprint(Path(content.model.path), content.model.fingerprint)
        _check_tasks(content)
        check_permissions(content.suites, bundle.path / "bundle.json")


def check_compute(bundle: LoadedBundle) -> None:
    """Check that this process can compute as the target states.

    Raises:
        InvalidInput: It has no GPU where the target has one for each process, or one without the
            target's precision; its launcher is wrong; the attention that the target asks for is not
            installed, or not supported by the model (that of a hub model is checked when it is
            built); or the installed DeepSpeed does not take the target's keys.
    """
    from sweepcp.training.zero_engine import check_zero_settings

    process, target = launched_process(), bundle.bundle.target
    device = target.hardware.device
    with located(bundle.path / "bundle.json", "target"):
        if device == "cuda":
            _check_gpu(process, target.compute.precision)
        with located("", "compute.attention"):
            _check_attention(bundle.bundle)
        settings = zero_config(bundle.bundle.recipe, target, world_size=process.world_size)
        with located("", "deepspeed.zero_optimization"):
            check_zero_settings(settings["zero_optimization"], device)


def _check_gpu(process: LaunchedProcess, precision: str) -> None:
    import torch

    from sweepcp.training.engine import computes_in_bf16

    visible = torch.cuda.device_count()
    index = process.gpu_index(visible)
    if index is None:
        raise InvalidInput(
            key="hardware.device",
            found=f"{visible} GPUs on {socket.gethostname()}",
            rule="a GPU for each process",
            fix="start as many processes per node as it has GPUs, or promote to a target with "
            "`device: cpu`",
        )
    device = torch.device("cuda", index)
    if precision == "bf16" and not computes_in_bf16(device, "auto"):
        major, minor = torch.cuda.get_device_capability(device)
        raise InvalidInput(
            key="compute.precision",
            found=f"bf16 on a GPU of compute capability {major}.{minor}",
            rule="a GPU of compute capability 8.0 or higher",
            fix="promote to a target with `precision: fp32`, or use other GPUs",
        )


def _check_attention(content: Bundle) -> None:
    import torch

    from sweepcp.models.architecture import read_model_config
    from sweepcp.models.attention import resolve_attention

    compute, device = content.target.compute, content.target.hardware.device
    if content.model.path is None:
        check_attention(compute.attention, device=device, precision=compute.precision)
        return
    resolve_attention(
        compute.attention,
        read_model_config(Path(content.model.path)),
        device=torch.device(device),
        in_bf16=compute.precision == "bf16",
        seq_len=content.recipe.seq_len,
        isolated=not content.recipe.cross_documents,
    )


def ds_config_for(bundle: LoadedBundle, world_size: int) -> dict[str, Any]:
    """Return the bundle's DeepSpeed configuration, or one of the same steps for another world size.

    Raises:
        InvalidInput: The number of processes does not divide the batch, or hierarchical
            partitioning does not divide it.
    """
    recipe, target = bundle.bundle.recipe, bundle.bundle.target
    with located(bundle.path / "bundle.json", "target"):
        check_deepspeed(target, world_size=world_size)
    planned, micro_batch = target.hardware.world_size, target.compute.micro_batch
    if world_size == planned and bundle.ds_config is not None:
        return bundle.ds_config
    if not divides_batch(recipe, target, world_size=world_size):
        micro_batches = recipe.sequences // micro_batch
        fix = f"start {planned}, as the bundle was planned"
        if bundle.ds_config is None:
            fix = "start another number, or use an export with tensor and pipeline parallelism"
        raise InvalidInput(
            file=bundle.path / "bundle.json",
            key="the number of processes",
            found=world_size,
            rule=f"a number of processes that divides {micro_batches} micro batches of a step",
            fix=fix,
        )
    config = zero_config(recipe, target, world_size=world_size)
    logger.info(
        "planned for %d processes, running on %d: each computes %d micro batches per step",
        planned,
        world_size,
        config["gradient_accumulation_steps"],
    )
    return config


def stores_of_bundle(bundle: Bundle) -> list[TokenStore]:
    """Return the token stores of a bundle that `check_ready` has passed."""
    return [TokenStore(Path(str(corpus.store)), corpus.name) for corpus in bundle.corpora]


def fetch_model_files(bundle: LoadedBundle, group: "ProcessGroup") -> list[SafetensorsFile]:
    """Return the weight files of the bundle's model, fetched from the hub if it is there.

    Raises:
        InvalidInput: The hub model is not the one that the bundle was made with.
    """
    model = bundle.bundle.model
    with located(bundle.path / "bundle.json"):
        if model.path is not None:  # checked by `check_ready`
            with located("", "model"):
                return read_shards(Path(model.path))

        assert model.hub is not None
        # The first process of each node downloads, so that a node fetches every file once. Then the
        # others find the files in its cache.
        for downloads in (True, False):
            if (group.local_rank == 0) == downloads:
                folder = fetch_hub_model(model.hub, model.revision)
            group.barrier()
        with located("", "model"):
            read_config(folder)
        check = partial(_check_fingerprint, folder, model.fingerprint)
        check_on_first_rank(group, check)
        return read_shards(folder)


def _check_corpus(corpus: CorpusPlan) -> None:
    key = f"corpora.{corpus.name}"
    if corpus.store is None:
        raise InvalidInput(
            key=key,
            found="planned",
            rule="a token store; a planned one has no tokens to train on",
            fix="build the store, name it in the target in place of `planned`, and promote again",
        )
    record = Path(corpus.store) / "store.json"
    if not record.is_file():
        raise InvalidInput(
            key=key,
            found=corpus.store,
            rule="the folder of a token store",
            fix="mount the store there, or promote again with its new path",
        )
    if file_sha256(record) != corpus.store_id:
        raise InvalidInput(
            key=key,
            found=f"{corpus.store}, changed",
            rule="the store that the bundle was made with",
            fix="promote again",
        )
    store = TokenStore(Path(corpus.store), corpus.name)
    if store.train().tokens.size != corpus.tokens:
        raise InvalidInput(
            key=key,
            found=corpus.store,
            rule=f"a store of {corpus.tokens:,} tokens",
            fix="rebuild the store",
        )


def _check_tasks(bundle: Bundle) -> None:
    now = identify_tasks(bundle.suites)
    changed = [name for name, task in bundle.tasks.items() if now[name] != task]
    if changed:
        raise InvalidInput(
            key="suites",
            found=f"{', '.join(changed)}, changed",
            rule="the task files that the bundle was made with",
            fix="restore the files, or promote again",
        )


def _check_commit(model: Model) -> None:
    if not COMMIT.fullmatch(model.revision or ""):
        raise InvalidInput(
            key="model.revision",
            found=model.revision,
            rule="the 40 hexadecimal digits of a commit, so that every process and every restart "
            "loads the same model",
            fix=f"name the commit of {model.hub} in the target, and promote again",
        )


def _check_fingerprint(folder: Path, fingerprint: str | None) -> None:
    if fingerprint is None:
        return
    with located("", "model"):
        if model_fingerprint(folder, read_shards(folder)) != fingerprint:
            raise InvalidInput(
                found=f"{folder}, changed",
                rule=f"the model that the bundle was made with (fingerprint {fingerprint})",
                fix="restore the model, or promote again",
            )
