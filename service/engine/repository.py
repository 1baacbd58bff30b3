"""The models that are served: the bundled ones and a folder's, by name and version, loaded and exchanged at work."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from service.cores import CorePlan, plan_cores
from service.engine.cuda import Device
from service.engine.folder import Files, default_model, model_files, own_files, version_key
from service.engine.model import Model
from service.engine.provider import choose
from service.engine.session import Resources, Session
from service.engine.statistics import Statistics
from service.errors import InvalidModel, ModelRefused, StartError, UnknownModel
from service.settings import Settings
from service.trace import note_model

log = logging.getLogger(__name__)

BUNDLED = Path(__file__).parent.parent / "bundled"
ROOM_BYTES = 32 * 1024 * 1024
"""Where models may be loaded later, decoders have room for clips of this size from the start."""

State = Literal["READY", "LOADING", "UNLOADING", "UNAVAILABLE"]
"""By the names of the Open Inference Protocol."""


@dataclass
class Entry:
    """What is known of a name and version."""

    name: str
    version: str
    statistics: Statistics
    state: State = "UNAVAILABLE"
    reason: str = "not loaded"
    """Why it is not there; or, while it is, why the file that lies in its place now was not taken."""
    model: Model | None = None


class Repository:
    """Every model under the bundled folder and `settings.models`, laid out NAME/VERSION/model.onnx, loaded.

    Args:
        cores: the plan that it shares with the decoders; that of the settings without it.
        observe_batch: called with a model's name and the size of each batch.
        on_change: called whenever other models are served than before.

    Raises:
        StartError: no model, none that takes whole clips and none to come, a folder that is not there or laid out in
            another way, a default that is not there.
        InvalidModel: a file that does not keep the contract.
        ProviderUnavailable: CUDA was asked for and cannot be had.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        cores: CorePlan | None = None,
        bundled: Path = BUNDLED,
        observe_batch: Callable[[str, int], object] = lambda name, size: None,
        on_change: Callable[[], object] = lambda: None,
    ) -> None:
        if settings.models is not None and not settings.models.is_dir():
            raise StartError(f"expected a folder of models (TTVIDEO_MODELS), found none at {settings.models}")
        self.settings = settings
        self._bundled = bundled
        self._observe_batch, self._on_change = observe_batch, on_change
        bundled_files = model_files(bundled)
        own = own_files(settings.models) if settings.models is not None else {}
        files = bundled_files | own
        if not files:
            raise StartError(f"expected a model at NAME/VERSION/model.onnx under {self._where}, found none")
        self._default = default_model(settings.default_model, files, own, bundled_files)
        self._choice = choose(settings.provider, settings.device_id)
        plan = cores or plan_cores(settings.decode_workers, settings.model_threads)
        self._resources = Resources(
            plan.model_threads,
            plan.model_runs,
            settings.max_batch,
            Device(settings.device_id, settings.gpu_memory_bytes, settings.cuda_graphs),
        )
        self._changing = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()
        self._entries: dict[str, dict[str, Entry]] = {}
        for (name, version), path in files.items():
            entry = self._entry(name, version)
            entry.model, entry.state, entry.reason = self._make(entry, self._open(name, version, path)), "READY", ""
        takers = [model for model in self.models if model.clip_fault is None]
        if not takers and settings.model_control == "none":
            faults = "; ".join(model.clip_fault or "" for model in self.models)
            raise StartError(f"expected a model that takes whole clips under {self._where}, found none: {faults}")
        largest = max((model.session.clip_manifest().sampling.clip_bytes for model in takers), default=0)
        self.max_clip_bytes = largest if settings.model_control == "none" else max(largest, ROOM_BYTES)
        """The largest clip that a model may ask for, now or later."""

    async def start(self) -> None:
        """Before the first request."""
        for model in self.models:
            await model.start()

    async def close(self) -> None:
        """Answer everything accepted, then let go of every model."""
        async with self._changing:
            for entry in self.entries:
                self._retire(entry)
            await asyncio.gather(*self._retiring)

    @property
    def default(self) -> Model:
        return self.find()

    @property
    def bundled(self) -> Model | None:
        """The first of the bundled models."""
        return next((m for m in self.models if m.session.path.is_relative_to(self._bundled)), None)

    @property
    def entries(self) -> list[Entry]:
        """By name, versions ascending."""
        return [
            self._entries[name][version]
            for name in sorted(self._entries)
            for version in sorted(self._entries[name], key=version_key)
        ]

    @property
    def models(self) -> list[Model]:
        """Those that are served, by name, versions ascending."""
        return [entry.model for entry in self.entries if entry.model is not None]

    def entry(self, model: Model) -> Entry:
        return self._entries[model.name][model.version]

    def is_default(self, model: Model) -> bool:
        name, version = self._default
        return model.name == name and model.version == (version or self.find(name).version)

    async def index(self) -> list[Entry]:
        """`entries`, with what lies in the folders by now."""
        for name, version in await asyncio.to_thread(self._files):
            self._entry(name, version)
        return self.entries

    def find(self, name: str | None = None, version: str | None = None) -> Model:
        """The model asked for; the default without a name, the latest without a version.

        Raises:
            UnknownModel: lists what there is; or says why a model that is known is not served.
        """
        if name is None:
            name = self._default[0]
            version = version or self._default[1]
        versions = self._entries.get(name, {})
        there = [entry.model for entry in versions.values() if entry.model is not None]
        if version:
            found = [model for model in there if model.version == version]
        else:
            found = [max(there, key=lambda model: version_key(model.version))] if there else []
        if found:
            return found[0]
        served = ", ".join(f"{model.name}/{model.version}" for model in self.models) or "no model: none is loaded"
        known = [entry for entry in versions.values() if version in (None, "", entry.version) and entry.reason]
        why = "".join(f"; {entry.name}/{entry.version} is not served: {entry.reason}" for entry in known)
        asked = f"{name or 'an empty name'}{f'/{version}' if version else ''}"
        raise UnknownModel(f"expected one of {served}; got {asked}{why}")

    @contextmanager
    def use(self, name: str | None = None, version: str | None = None) -> Iterator[Model]:
        """The model asked for, which stays until the end of the block whatever takes its place.

        Raises:
            UnknownModel: from `find`.
        """
        with self.find(name, version).use() as model:
            note_model(model.name, model.version, model.session.provider)
            yield model

    async def load(self, name: str, sent: Mapping[str, bytes] | None = None) -> None:
        """Make what is served under a name equal to the folders: new and changed files are loaded and warmed up beside
        what is served, and take over; versions whose file is gone go. A file that is refused changes nothing.

        Args:
            sent: files by version, that stand in the place of those in the folders until the next load.

        Raises:
            UnknownModel: there is no file.
            ModelRefused: one or more files were refused, the others are served.
        """
        async with self._changing:
            if sent is None:
                files = {version: path for (one, version), path in self._files().items() if one == name}
            else:
                files = {version: Path(name, version, "model.onnx") for version in sent}
            if not files:
                raise UnknownModel(f"expected {name or 'NAME'}/VERSION/model.onnx in the folders of models, found none")
            for version, path in files.items():
                await self._load(self._entry(name, version), path, sent[version] if sent is not None else None)
            for version in self._entries[name].keys() - files.keys():
                self._retire(self._entries[name][version], "its file is gone")
            if refused := [entry.reason for version in files if (entry := self._entry(name, version)).reason]:
                raise ModelRefused("; ".join(refused))

    async def unload(self, name: str) -> None:
        """Serve no version of a name any more. Requests under way finish.

        Raises:
            UnknownModel: there is no such name.
        """
        async with self._changing:
            if name not in self._entries:
                self.find(name)
            for entry in self._entries[name].values():
                self._retire(entry)

    async def _load(self, entry: Entry, path: Path, sent: bytes | None) -> None:
        serving = entry.model.session.sha256 if entry.model is not None else None
        try:
            if serving is not None and await asyncio.to_thread(_sha256, path, sent) == serving:
                entry.reason = ""
                return
            if entry.model is None:
                entry.state, entry.reason = "LOADING", ""
            session = await asyncio.to_thread(self._open, entry.name, entry.version, path, sent)
            if not (model := self._make(entry, session)).clip_fault:
                wanted = session.clip_manifest().sampling.clip_bytes
                if wanted > self.max_clip_bytes:
                    raise InvalidModel(
                        f"{path}: expected clips of at most {self.max_clip_bytes} bytes, for which the decoders have "
                        f"had room since the start, got {wanted}; restart the service to serve it"
                    )
            await model.start()
        except Exception as error:  # whatever a file does to ONNX Runtime, it must not touch what is served
            log.error("%s/%s: refused, %s: %s", entry.name, entry.version, _what_serves(entry), error)
            foreseen = isinstance(error, StartError | OSError)
            reason = str(error) if foreseen else f"{path}: {type(error).__name__}: {error}"
            entry.reason = reason.replace(str(path), f"{entry.name}/{entry.version}/model.onnx")
            if entry.model is None:
                entry.state = "UNAVAILABLE"
            return
        old, entry.model, entry.state, entry.reason = entry.model, model, "READY", ""
        if old is not None:
            self._let_go(old, entry)
        self._on_change()

    def _entry(self, name: str, version: str) -> Entry:
        versions = self._entries.setdefault(name, {})
        return versions.setdefault(version, Entry(name, version, Statistics()))

    def _open(self, name: str, version: str, path: Path, sent: bytes | None = None) -> Session:
        """Load and warm up; to be called in a thread."""
        session = Session(path, self._choice, self._resources, model=sent, strict=self.settings.provider == "cuda")
        says = session.manifest.name, session.manifest.version
        if says != (name, version):
            raise InvalidModel(
                f"{path}: expected a manifest that says {name}/{version}, as its folders do, got {'/'.join(says)}"
            )
        log.info("loaded %s/%s on %s, warm in %.0f ms", name, version, session.provider, 1e3 * session.warm_up_s)
        return session

    def _make(self, entry: Entry, session: Session) -> Model:
        return Model(
            session,
            self.settings,
            statistics=entry.statistics,
            observe_batch=lambda size: self._observe_batch(entry.name, size),
        )

    def _retire(self, entry: Entry, why: str = "unloaded") -> None:
        if entry.model is None:
            return
        model, entry.model, entry.state, entry.reason = entry.model, None, "UNLOADING", why
        self._let_go(model, entry)
        self._on_change()

    def _let_go(self, model: Model, entry: Entry) -> None:
        async def when_unused() -> None:
            await model.retire()
            log.info("%s/%s (sha256 %s) is let go of", model.name, model.version, model.session.sha256[:12])
            if entry.state == "UNLOADING":
                entry.state = "UNAVAILABLE"

        task = asyncio.get_running_loop().create_task(when_unused())
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    def _files(self) -> Files:
        own = model_files(self.settings.models) if self.settings.models is not None else {}
        return model_files(self._bundled) | own

    @property
    def _where(self) -> str:
        return f"{self.settings.models} or {self._bundled}" if self.settings.models is not None else str(self._bundled)


def _sha256(path: Path, sent: bytes | None) -> str:
    return hashlib.sha256(path.read_bytes() if sent is None else sent).hexdigest()


def _what_serves(entry: Entry) -> str:
    return "and nothing serves in its place" if entry.model is None else "the one before it serves on"
