"""Optional libraries: which are missing, and the command that installs them."""

import importlib.util
import shlex
from pathlib import Path

# What is chosen on Hydra's command line -> the extra that brings it, and the module to look for.
PLUGINS = {
    "hydra/sweeper=optuna": ("optuna", "hydra_plugins.hydra_optuna_sweeper"),
    "hydra/launcher=joblib": ("joblib", "hydra_plugins.hydra_joblib_launcher"),
    "hydra/launcher=submitit_slurm": ("submitit", "hydra_plugins.hydra_submitit_launcher"),
    "hydra/launcher=submitit_local": ("submitit", "hydra_plugins.hydra_submitit_launcher"),
    "hydra/launcher=ray": ("ray", "hydra_plugins.hydra_ray_launcher"),
}


def install_command(extra: str) -> str:
    """The command that installs the optional dependencies `extra`, from a checkout or a wheel.

    In a checkout it installs the checkout with the extra. A wheel is on no index before a release, so there the
    command names the libraries that the wheel's metadata lists.
    """
    from importlib.metadata import PackageNotFoundError, requires

    checkout = Path(__file__).parents[1]
    if (checkout / "pyproject.toml").is_file():
        where = "." if checkout == Path.cwd() else str(checkout)
        return f"pip install -e {shlex.quote(f'{where}[{extra}]')}"
    try:
        listed = [line.partition(";") for line in requires("posttrain") or ()]
    except PackageNotFoundError:
        listed = []
    wanted = [name.strip() for name, _, when in listed if when.replace("'", '"').strip() == f'extra == "{extra}"']
    return f"pip install {' '.join(map(shlex.quote, wanted)) if wanted else f'POSTTRAIN_WHEEL[{extra}]'}"


def missing_modules(*modules: str) -> list[str]:
    """Those of `modules` that cannot be imported."""
    return [module for module in modules if not _is_installed(module)]


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False


def missing_plugin(argv: list[str]) -> str | None:
    """What to say where `argv` chooses a plugin of Hydra that is not installed; `None` where all are there."""
    for word, (extra, module) in PLUGINS.items():
        if word in argv and missing_modules(module):
            return f"{word}: not installed; {install_command(extra)}"
    return None
