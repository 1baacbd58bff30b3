"""The models that are served: the bundled ones and a folder's, by name and version."""

from __future__ import annotations

import logging
from pathlib import Path

from service.engine.provider import choose
from service.engine.session import Session
from service.errors import InvalidModel, StartError, UnknownModel
from service.settings import Settings

log = logging.getLogger(__name__)

BUNDLED = Path(__file__).parent.parent / "bundled"
NAMED = 5
"""Of what was found in the wrong place, how many a message names."""


class Repository:
    """Every model under the bundled folder and `settings.models`, laid out NAME/VERSION/model.onnx, loaded.

    Raises:
        StartError: no model, a folder that is not there or laid out in another way, a default that is not there.
        InvalidModel: a file that does not keep the contract.
        ProviderUnavailable: CUDA was asked for and cannot be had.
    """

    def __init__(self, settings: Settings, *, bundled: Path = BUNDLED) -> None:
        if settings.models is not None and not settings.models.is_dir():
            raise StartError(f"expected a folder of models (TTVIDEO_MODELS), found none at {settings.models}")
        self._bundled = bundled
        bundled_files = _model_files(bundled)
        own_files = _own_files(settings.models) if settings.models is not None else {}
        files = bundled_files | own_files
        if not files:
            where = f"{settings.models} or " if settings.models is not None else ""
            raise StartError(f"expected a model at NAME/VERSION/model.onnx under {where}{bundled}, found none")
        self._default = _default(settings.default_model, files, own_files, bundled_files)
        choice = choose(settings.provider, settings.device_id)
        self._sessions: dict[str, dict[str, Session]] = {}
        for (name, version), path in sorted(files.items(), key=lambda item: (item[0][0], version_key(item[0][1]))):
            session = Session(path, choice, device_id=settings.device_id, strict=settings.provider == "cuda")
            says = session.manifest.name, session.manifest.version
            if says != (name, version):
                raise InvalidModel(
                    f"{path}: expected a manifest that says {name}/{version}, as its folders do, got {'/'.join(says)}"
                )
            self._sessions.setdefault(name, {})[version] = session
            log.info("loaded %s/%s on %s, warm in %.0f ms", name, version, session.provider, 1e3 * session.warm_up_s)

    @property
    def default(self) -> Session:
        return self.find()

    @property
    def bundled(self) -> Session | None:
        """The first of the bundled models."""
        return next((session for session in self.sessions if session.path.is_relative_to(self._bundled)), None)

    @property
    def sessions(self) -> list[Session]:
        """By name, versions ascending."""
        return [session for versions in self._sessions.values() for session in versions.values()]

    def find(self, name: str | None = None, version: str | None = None) -> Session:
        """The model asked for; the default without a name, the latest without a version.

        Raises:
            UnknownModel: lists what there is.
        """
        if name is None:
            name = self._default[0]
            version = version or self._default[1]
        versions = self._sessions.get(name, {})
        wanted = version or next(reversed(versions), None)
        if wanted is None or wanted not in versions:
            there = ", ".join(f"{s.manifest.name}/{s.manifest.version}" for s in self.sessions)
            raise UnknownModel(
                f"expected one of {there}; got {name or 'an empty name'}{f'/{version}' if version else ''}"
            )
        return versions[wanted]


def version_key(version: str) -> tuple[int, int, str]:
    """Numbers in their order, then everything else by letters."""
    return (1, int(version), "") if version.isascii() and version.isdigit() else (0, 0, version)


Files = dict[tuple[str, str], Path]


def _model_files(folder: Path) -> Files:
    return {(path.parts[-3], path.parts[-2]): path for path in folder.glob("*/*/model.onnx")}


def _own_files(folder: Path) -> Files:
    """Those of `settings.models`. An empty folder waits for its first model; any other without one is a mistake."""
    files = _model_files(folder)
    levels = ("*.onnx", "*/*.onnx", "*/*/*.onnx", "*/*/*/*.onnx")
    astray = sorted(path for level in levels for path in folder.glob(level) if path not in files.values())
    if files:
        for path in astray:
            log.warning("%s is not served: expected NAME/VERSION/model.onnx under %s", path, folder)
        return files
    found = [str(path.relative_to(folder)) for path in astray] or sorted(
        path.name for path in folder.iterdir() if not path.name.startswith(".")
    )
    if found:
        more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
        raise StartError(
            f"expected models at NAME/VERSION/model.onnx under {folder}, found {', '.join(found[:NAMED])}{more}"
        )
    log.warning("no model of your own is served: expected NAME/VERSION/model.onnx under %s, which is empty", folder)
    return files


def _default(asked: str | None, files: Files, own: Files, bundled: Files) -> tuple[str, str | None]:
    """Name and, where it was fixed, version of the model that answers when a request names none."""
    if asked is not None:
        name, _, version = asked.partition("/")
        if not any(name == n and version in ("", v) for n, v in files):
            there = ", ".join(f"{n}/{v}" for n, v in files)
            raise StartError(f"expected the default model to be one of {there}, got {asked}")
        return name, version or None
    own_names = {name for name, _ in own}
    if len(own_names) == 1:
        return own_names.pop(), None
    bundled_names = sorted({name for name, _ in bundled})
    if bundled_names:
        return bundled_names[0], None
    raise StartError(
        f"expected TTVIDEO_DEFAULT_MODEL to choose among {', '.join(sorted(own_names))}; there is no bundled model"
    )
