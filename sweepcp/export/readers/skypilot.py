"""SkyPilot: its own schema and parser of a task."""

from pathlib import Path
from typing import Any

from common import run_reader


def load_peer() -> str:
    """Import SkyPilot, and return its version."""
    import sky

    return f"skypilot {sky.__version__}"


def read_folder(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Read `task.yaml`."""
    import sky
    import yaml
    from sky.utils import schemas, validator

    content = yaml.safe_load((folder / "task.yaml").read_text(encoding="utf-8"))
    schema = schemas.get_task_schema()
    unknown = set(content) - set(schema["properties"])
    if unknown:
        raise ValueError(f"unknown keys: {sorted(unknown)}")
    validator.get_schema_validator()(schema).validate(content)
    # `sky jobs launch --secret` fills in the values before it parses the task.
    secrets = dict.fromkeys(content.get("secrets") or {}, "from the environment")
    task = sky.Task.from_yaml_config(content | {"secrets": secrets})
    # With `any_of`, there is one for each infrastructure; they differ in nothing else.
    resources = next(iter(task.resources))
    if {str(r.accelerators) for r in task.resources} != {str(resources.accelerators)}:
        raise ValueError("infrastructures with different GPUs")
    image = resources.image_id and next(iter(resources.image_id.values()))
    settings = {
        "name": task.name,
        "nodes": task.num_nodes,
        "gpus": sum((resources.accelerators or {}).values()),
        "image": image,
        "mounts": sorted(task.volumes or {}),
        "use_spot": resources.use_spot,
        "cpus": resources.cpus,
        "memory": resources.memory,
        "setup": task.setup,
        "envs": task.envs,
        "secrets": sorted(task.secrets),
        "recovery": resources.job_recovery,
        "run": task.run,
    }
    if settings["nodes"] != record["nodes"] or settings["gpus"] not in (0, record["per_node"]):
        raise ValueError(f"{settings['nodes']} nodes of {settings['gpus']} GPUs")
    return {"settings": settings, "facts": {}}


if __name__ == "__main__":
    run_reader(load_peer, read_folder)
