"""The base of a search: checked before stores are built, and pretrained where it is a small one."""

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sweepcp.config.base_model import BaseSpec
from sweepcp.config.experiment import Experiment
from sweepcp.data.token_store import TokenStore
from sweepcp.errors import InvalidInput, located
from sweepcp.models.base import model_config, pretrained_path
from sweepcp.models.randomness import format_settings, random_settings
from sweepcp.util.gpus import Device, hide_gpus
from sweepcp.util.progress import Progress

if TYPE_CHECKING:  # imports torch
    from sweepcp.training.loop import StepMetrics

logger = logging.getLogger(__name__)
T = TypeVar("T")


def check_base(experiment: Experiment, fingerprints: dict[str, str], *, device: Device) -> None:
    """Check the base before hours are spent on stores, and report what is changed in it.

    A hub model is checked by the workers, which fetch it. A model that is to be pretrained is built
    in a task of Ray, whose process then pretrains it: importing torch takes seconds.

    Raises:
        InvalidInput: The files do not hold exactly the model's tensors, the model that is to be
            pretrained cannot be built, or torch cannot use the device.
    """
    base = experiment.base
    config = model_config(base)
    if config is not None and (settings := random_settings(config)):
        logger.warning("the base's configuration has %s: set to 0", format_settings(settings))
    if base.path is not None:
        from sweepcp.models.loading import check_model_files

        check_model_files(Path(base.path))
    elif base.pretrain and not (pretrained_path(base, fingerprints) / "config.json").exists():
        work = partial(_build_without_weights, base, device=device)
        list(_run(work, experiment, device=device, ends_process=False))


def find_or_pretrain_base(
    experiment: Experiment,
    fingerprints: dict[str, str],
    stores: Mapping[str, TokenStore],
    *,
    device: Device,
    progress: Progress,
) -> str:
    """Return the base's folder or hub id; pretrain it first if it is not in the cache.

    It is pretrained in a task of Ray, to which this process must be connected.

    Raises:
        InvalidInput: The configuration cannot be built, does not isolate packed documents, or does
            not fit into the memory of a GPU.
        Diverged: The loss or the gradient norm of a step is not finite.
        WorkLost: The process was killed, or its node was lost.
    """
    base = experiment.base
    if base.pretrain is None:
        return str(base.path or base.hub)
    path = pretrained_path(base, fingerprints)
    if not (path / "config.json").exists():
        threads = experiment.budget.cpus_per_trial
        work = partial(_pretrain, base, path, list(stores.values()), device=device, threads=threads)
        steps = base.pretrain.tokens // base.pretrain.training.batch_tokens
        logger.info("pretraining the base model: %d steps; it is cached for later runs", steps)
        for metrics in _run(work, experiment, device=device):
            detail = f"pretraining, loss {metrics.loss:.2f}"
            progress.update("base", done=metrics.step, total=steps, detail=detail)
        progress.finish("base")
    return str(path)


def _run(
    work: Callable[[], Iterator[T]],
    experiment: Experiment,
    *,
    device: Device,
    ends_process: bool = True,
) -> Iterator[T]:
    """Run work in a task of Ray with the CPUs of a trial and, if trials use GPUs, a whole one."""
    # It takes seconds to import.
    from sweepcp.search.cluster import run_in_task

    cpus, gpus = experiment.budget.cpus_per_trial, 1 if device == "cuda" else 0
    return run_in_task(work, cpus=cpus, gpus=gpus, ends_process=ends_process)


def _build_without_weights(base: BaseSpec, *, device: Device) -> Iterator[None]:
    """Open the device, and build the model that is to be pretrained without weights.

    Yields nothing.
    """
    if device == "cpu":
        hide_gpus()
    from sweepcp.models.architecture import empty_model
    from sweepcp.models.loading import load_tokenizer
    from sweepcp.training.device import open_device
    from sweepcp.training.pretraining import model_config_of

    assert base.pretrain is not None
    open_device(device)
    with located(file="", key="base.pretrain.config"):
        empty_model(model_config_of(base.pretrain, load_tokenizer(base)))
    yield from ()


def _pretrain(
    base: BaseSpec, path: Path, stores: list[TokenStore], *, device: Device, threads: int
) -> "Iterator[StepMetrics]":
    """Pretrain a base in this process, which imports torch; the driver need not."""
    if device == "cpu":
        hide_gpus()
    import torch

    from sweepcp.models.loading import load_tokenizer
    from sweepcp.training.device import is_out_of_memory, open_device
    from sweepcp.training.pretraining import pretrain_base

    assert base.pretrain is not None
    torch.set_num_threads(threads)
    steps = pretrain_base(
        base.pretrain,
        base.max_lr,
        path,
        stores,
        load_tokenizer(base),
        device=open_device(device),
    )
    try:
        yield from steps
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise InvalidInput(
            key="base.pretrain.config",
            found="a model whose pretraining in fp32 does not fit into the memory of the GPU",
            rule="a model that one GPU can train",
            fix="make it smaller, or use a larger GPU",
        ) from None
