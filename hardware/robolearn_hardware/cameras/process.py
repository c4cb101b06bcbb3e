"""A camera in a process of its own: its frames go into shared memory, and nobody who reads them can hold it up."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import queue
import signal
import threading
import zlib
from collections.abc import Iterator, Mapping
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from robolearn_hardware import devices
from robolearn_hardware.cameras.health import (
    HEARTBEAT_S,
    CameraCondition,
    CameraHealth,
    HealthWriter,
    create_health_ring,
    read_health,
)
from robolearn_hardware.devices import Camera, CameraInfo, DeviceError, DeviceGoneError, DeviceTimeoutError, Frame
from robolearn_hardware.ring import Field, Ring, RingHandle

if TYPE_CHECKING:
    from robolearn_hardware.registry import CameraConfig

START_S = 60.0
"""In which a camera must be open: its driver has 10 s, and the process must start, on a loaded machine too."""

_BACKOFF_S = (0.1, 2.0)
"""First and longest wait between attempts to open a camera that has gone."""

_END_S = 3.0
_SHARED_MEMORY = "/dev/shm"
_ERRORS = {kind.__name__: kind for kind in (DeviceError, DeviceGoneError, DeviceTimeoutError, devices.NotReadyError)}


def frame_fields(info: CameraInfo) -> dict[str, Field]:
    """The ring record of a colour picture; what a recorder expects of a stream (height, width, 3) uint8."""
    return _fields("uint8", (info.height, info.width, 3))


def depth_fields(info: CameraInfo) -> dict[str, Field]:
    """The ring record of a depth picture (height, width, 1) uint16, in ``info.depth_m``."""
    return _fields("uint16", (info.height, info.width, 1))


def _fields(dtype: str, shape: tuple[int, ...]) -> dict[str, Field]:
    return {"capture_ns": ("int64", ()), "received_ns": ("int64", ()), "value": (dtype, shape)}


class CameraProcess:
    """Opens a camera in a process of its own, which publishes its frames until ``close``. Use it as a context manager.

    A camera that is unplugged is opened again when it is back, by the same process and into the same rings. ``health``
    says how it is. The constructor does not wait, so that several cameras can start at the same time.
    """

    ring: Ring
    """Records of ``frame_fields``. It, ``depth_ring`` and ``info`` are there after ``wait_ready``."""
    depth_ring: Ring | None
    info: CameraInfo

    def __init__(self, name: str, config: CameraConfig, *, latency_ms: float = 0.0, slots: int | None = None) -> None:
        """
        Args:
            latency_ms: from the event to the capture time as the driver states it (``Placement.latency_ms``).
            slots: frames that the rings keep; by default those of 0.6 s, and at least 16.
        """
        self.name = name
        self._slots = slots
        self._ready = False
        self._rings: list[Ring] = []
        self.health_ring = self._keep(create_health_ring())
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (name, config, round(latency_ms * 1e6), self.health_ring.handle, theirs)
        self._process = context.Process(target=_run, args=arguments, name=f"camera {name}", daemon=True)
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def wait_ready(self, timeout_s: float = START_S) -> CameraInfo:
        """Wait until it is open and its frames go into the rings.

        Raises:
            DeviceError: it cannot be opened, as its driver says; the process has ended. Only ``close`` is left then.
            DeviceTimeoutError: it is not open by then; it may be later.
        """
        if self._ready:
            return self.info
        try:
            if not self._pipe.poll(timeout_s):
                raise DeviceTimeoutError(f"camera {self.name!r} is not open after {timeout_s:g} s")
            kind, value = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(1)
            raise DeviceGoneError(
                f"camera {self.name!r}: its process has ended (exit code {self._process.exitcode}); start it again"
            ) from None
        if kind != "info":
            raise _ERRORS[kind](value)
        self.info = value
        slots = self._slots or max(16, math.ceil(0.6 * self.info.rate_hz))
        self._check_room(slots * self.info.width * self.info.height * (5 if self.info.has_depth else 3))
        self.ring = self._keep(Ring.create(frame_fields(self.info), slots))
        self.depth_ring = None
        if self.info.has_depth:
            self.depth_ring = self._keep(Ring.create(depth_fields(self.info), slots))
        with contextlib.suppress(OSError):  # it has ended meanwhile: ``health`` says so
            self._pipe.send(self.handles())
        self._ready = True
        return self.info

    def handles(self) -> dict[str, RingHandle]:
        """What other processes attach to: "colour" and, where there is depth, "depth"."""
        depth = {"depth": self.depth_ring.handle} if self.depth_ring else {}
        return {"colour": self.ring.handle, **depth}

    def health(self) -> CameraHealth:
        """How it is now. Does not wait. Others read the same by ``read_health`` from ``health_ring``; only here is a
        process that was killed known at once."""
        health = read_health(self.health_ring)
        if self._process.is_alive():
            return health
        reason = f": {health.message}" if health.message else ""
        message = f"its process has ended (exit code {self._process.exitcode}){reason}"
        return dataclasses.replace(health, condition=CameraCondition.GONE, message=message)

    def close(self) -> None:
        """End the process, within seconds whatever the camera does, and remove the rings. May be called twice."""
        with contextlib.suppress(OSError):
            self._pipe.send(None)
        self._process.join(_END_S + 1)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._pipe.close()
        for ring in self._rings:
            ring.close()

    def __enter__(self) -> CameraProcess:
        """Waits until it is ready; raises as ``wait_ready``."""
        try:
            self.wait_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_room(self, needed: int) -> None:
        """Shared memory is promised without being there, and a process that writes to what is not there is killed."""
        if not os.path.isdir(_SHARED_MEMORY):
            return
        room = os.statvfs(_SHARED_MEMORY)
        free = room.f_bavail * room.f_frsize
        if free < needed:
            raise DeviceError(
                f"camera {self.name!r} needs {needed / 2**20:.0f} MiB of shared memory, {_SHARED_MEMORY} has "
                f"{free / 2**20:.0f}; end what uses it, or start the container with --shm-size=1g"
            )

    def _keep(self, ring: Ring) -> Ring:
        self._rings.append(ring)
        return ring


@contextlib.contextmanager
def open_cameras(
    configs: Mapping[str, CameraConfig], latency_ms: Mapping[str, float] | None = None
) -> Iterator[dict[str, CameraProcess]]:
    """Start several at the same time and wait for all: name -> CameraProcess. Raises as ``wait_ready``."""
    delays = latency_ms or {}
    with contextlib.ExitStack() as stack:
        processes = {}
        for name, config in configs.items():
            processes[name] = CameraProcess(name, config, latency_ms=delays.get(name, 0.0))
            stack.callback(processes[name].close)
        for process in processes.values():
            process.wait_ready()
        yield processes


def _run(name: str, config: CameraConfig, latency_ns: int, health_handle: RingHandle, pipe: Connection) -> None:
    """The camera's process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C reaches every process of a terminal; the parent decides
    health = HealthWriter(Ring.attach(health_handle))
    health.beat()
    end, done = threading.Event(), threading.Event()
    handles: queue.SimpleQueue[dict[str, RingHandle] | None] = queue.SimpleQueue()
    threading.Thread(target=_watch, args=(pipe, health, handles, end, done), daemon=True).start()
    camera = None
    try:
        camera = config.open(name)
        camera.connect()
        pipe.send(("info", camera.info))
        rings = handles.get()
        if rings is not None:
            _Publisher(camera, rings, health, latency_ns).serve(end)
    except DeviceError as error:
        kind = type(error).__name__
        health.tell(CameraCondition.GONE, str(error))
        with contextlib.suppress(OSError):
            pipe.send((kind if kind in _ERRORS else "DeviceError", str(error)))
    except OSError:  # the parent was killed, and its pipe with it
        pass
    finally:
        if camera is not None:
            camera.close()
        done.set()


def _watch(
    pipe: Connection,
    health: HealthWriter,
    handles: queue.SimpleQueue[dict[str, RingHandle] | None],
    end: threading.Event,
    done: threading.Event,
) -> None:
    """Beat, hear the parent, and end the process if it is told to, or the parent was killed: even if a driver hangs."""
    told: Any = ""
    while told is not None:
        health.beat()
        try:
            if pipe.poll(HEARTBEAT_S):
                told = pipe.recv()
                handles.put(told)
        except (EOFError, OSError):
            told = None
    handles.put(None)
    end.set()
    if not done.wait(_END_S):
        os._exit(1)


class _Publisher:
    """Moves frames from a camera into its rings, and opens it again when it has gone."""

    def __init__(
        self, camera: Camera, handles: Mapping[str, RingHandle], health: HealthWriter, latency_ns: int
    ) -> None:
        self._camera, self._health, self._latency_ns = camera, health, latency_ns
        self._rings = {name: Ring.attach(handle) for name, handle in handles.items()}
        self._size = (camera.info.height, camera.info.width)
        self._next: int | None = None
        """The number of the next frame; None where it is not known."""
        self._picture = -1
        """CRC-32 of a few of its pixels."""
        health.opened(camera.info.rate_hz, again=False)

    def serve(self, end: threading.Event) -> None:
        """Publish until ``end`` is set."""
        misses, patience = 0, max(2, math.ceil(5 / self._camera.info.rate_hz))
        while not end.is_set():
            try:
                self._publish(self._camera.read())
                misses = 0
            except DeviceTimeoutError as error:
                misses += 1
                if misses == patience:  # what stands still often runs again once it is opened anew
                    self._health.tell(CameraCondition.STALE, str(error))
                    self._reconnect(end)
                    misses = 0
            except DeviceError as error:
                self._health.tell(CameraCondition.GONE, str(error))
                self._reconnect(end)

    def _publish(self, frame: Frame) -> None:
        if frame.colour.shape[:2] != self._size:
            height, width = self._size
            raise DeviceError(
                f"camera {self._camera.info.name!r} sends {frame.colour.shape[1]}x{frame.colour.shape[0]} now and sent "
                f"{width}x{height} before; set it back, or start again"
            )
        times = {"capture_ns": frame.capture_ns - self._latency_ns, "received_ns": frame.received_ns}
        self._rings["colour"].publish({**times, "value": frame.colour})
        if frame.depth is not None and "depth" in self._rings:
            self._rings["depth"].publish({**times, "value": frame.depth[..., None]})
        last, self._picture = self._picture, zlib.crc32(frame.colour[8::16, 8::16].tobytes())
        lost = 0 if self._next is None else max(0, frame.number - self._next)
        self._next = frame.number + 1
        self._health.frame(frame.received_ns, changed=self._picture != last, lost=lost)

    def _reconnect(self, end: threading.Event) -> None:
        """Try to open it until that succeeds or ``end`` is set."""
        wait_s, longest_s = _BACKOFF_S
        self._camera.close()
        while not end.wait(wait_s):
            wait_s = min(2 * wait_s, longest_s)
            try:
                self._camera.connect()
            except DeviceError as error:
                stale = isinstance(error, DeviceTimeoutError)
                self._health.tell(CameraCondition.STALE if stale else CameraCondition.GONE, str(error))
                self._camera.close()
                continue
            self._next = None
            self._health.opened(self._camera.info.rate_hz, again=True)
            return
