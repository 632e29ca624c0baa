"""The commit of the working folder, asked of git without running what its settings name."""

import os
import subprocess

LIFELESS = {"core.fsmonitor": "false", "core.hooksPath": os.devnull}
"""Settings with which git would run commands of the repository that it looks into."""
OWN_SCOPES = ("local", "worktree")
"""Where settings come from the repository, which may be somebody's data, and not from its user."""


def current_commit() -> str | None:
    """Return the commit of the working folder, with `-dirty` if files that git tracks have changed.

    None where it is not a git work tree, or git cannot tell.
    """
    filters = _ask_git("config", "-z", "--show-scope", "--name-only", "--get-regexp", r"^filter\.")
    fields = (filters or "").split("\0")
    settings = dict(LIFELESS)
    for scope, name in zip(fields[::2], fields[1::2], strict=False):
        if scope in OWN_SCOPES:
            settings[name] = ""
    commit = _ask_git("rev-parse", "--verify", "HEAD", settings=settings)
    changes = _ask_git(
        "status",
        "--porcelain",
        "--untracked-files=no",
        # It would otherwise look into each submodule, with the settings of that.
        "--ignore-submodules=dirty",
        settings=settings,
    )
    if commit is None or changes is None:
        return None
    return f"{commit.strip()}-dirty" if changes else commit.strip()


def _ask_git(*command: str, settings: dict[str, str] | None = None) -> str | None:
    """Return what git prints, or None if it fails.

    Args:
        *command: Its arguments.
        settings: Settings over those of the repository.
    """
    # No lock: git would run a hook after it has written its index. No protocol: it would fetch
    # missing objects, by a command of the repository's choice.
    env = os.environ | {"GIT_OPTIONAL_LOCKS": "0", "GIT_ALLOW_PROTOCOL": "none"}
    for number, (name, value) in enumerate((settings or {}).items()):
        env |= {f"GIT_CONFIG_KEY_{number}": name, f"GIT_CONFIG_VALUE_{number}": value}
    env["GIT_CONFIG_COUNT"] = str(len(settings or {}))
    try:
        result = subprocess.run(
            ["git", *command],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            env=env,
        )
    except OSError:
        return None
    return result.stdout if result.returncode == 0 else None
