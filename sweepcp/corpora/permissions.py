"""Permission to run the code of task files, which people give and files do not.

`allow_code` of an experiment is also in the records of its run and in bundles, and these may come
from somebody else. So they count only where somebody has used an experiment with it, and only for
the same code.
"""

from pathlib import Path

from sweepcp.config.suites import MemberSpec, Suites
from sweepcp.corpora.task_files import task_fingerprint
from sweepcp.errors import InvalidInput
from sweepcp.util.files import cache_dir, write_text


def remember_permissions(suites: Suites) -> None:
    """Remember in the cache what code the suites of an experiment file may run."""
    for _, member in suites.members:
        if member.allow_code and not _permission(member).exists():
            write_text(_permission(member), f"{member.path or 'lm-eval'}: {member.name}\n")


def check_permissions(suites: Suites, where: object) -> None:
    """Raise `InvalidInput` if suites of a run or a bundle run code that nobody has allowed here.

    Args:
        suites: As the records have them.
        where: The run or the bundle, for messages.
    """
    for _, member in suites.members:
        if member.allow_code and not _permission(member).exists():
            raise InvalidInput(
                file=where,
                key=f"{member.name}.allow_code",
                found=f"Python code in {member.path or 'a task of lm-eval'}",
                rule="code that an experiment file has allowed to run on this machine",
                fix="read the code; if it is safe to run, run `sweepcp plan` on an experiment "
                "with this task and `allow_code: true`, or set $SWEEPCP_CACHE to the cache that "
                "the search used",
            )


def _permission(member: MemberSpec) -> Path:
    name = "lm-eval " + member.name
    if member.path is not None:
        name = task_fingerprint(Path(member.path), member.name)
    return cache_dir() / "allowed_code" / name.replace("/", "-")
