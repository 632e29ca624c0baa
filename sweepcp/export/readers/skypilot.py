"""SkyPilot: its own schema and loading of a task."""

from common import answer


def peer():
    import sky

    return f"skypilot {sky.__version__}"


def read(folder, record):
    import sky
    import yaml
    from sky.utils import schemas, validator

    path = folder / "task.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    unknown = set(content) - set(schemas.get_task_schema()["properties"])
    if unknown:
        raise ValueError(f"unknown keys: {sorted(unknown)}")
    validator.get_schema_validator()(schemas.get_task_schema()).validate(content)
    filled = content | {
        "secrets": dict.fromkeys(content.get("secrets") or {}, "from the environment")
    }
    task = sky.Task.from_yaml_config(filled)
    (resources,) = task.resources
    found = {
        "name": task.name,
        "nodes": task.num_nodes,
        "gpus": sum((resources.accelerators or {}).values()),
        "image": resources.image_id and next(iter(resources.image_id.values())),
        "mounts": sorted(task.volumes or {}),
        "secrets": sorted(task.secrets),
        "recovery": resources.job_recovery,
        "run": task.run,
    }
    if found["nodes"] != record["nodes"] or found["gpus"] not in (0, record["per_node"]):
        raise ValueError(f"{found['nodes']} nodes of {found['gpus']} GPUs")
    return {"settings": found, "facts": {}}


if __name__ == "__main__":
    answer(peer, read)
