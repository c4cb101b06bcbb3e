"""The bar that a person watches while a policy trains."""

from __future__ import annotations

from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class TrainingBar:
    """Steps done, loss, steps per second and time left; silent where ``visible`` is False."""

    def __init__(self, first: int, steps: int, *, visible: bool) -> None:
        self._progress = Progress(
            TextColumn("train"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("{task.fields[rate]} steps/s"),
            TimeRemainingColumn(),
            disable=not visible,
        )
        self._first = first
        self._task = self._progress.add_task("train", total=steps, completed=first, loss="-", rate="-")

    def __enter__(self) -> TrainingBar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def update(self, step: int, loss: float) -> None:
        task = self._progress.tasks[self._task]
        rate = f"{(step - self._first) / task.elapsed:.1f}" if task.elapsed else "-"
        self._progress.update(self._task, completed=step, loss=f"{loss:.4f}", rate=rate)

    def note(self, text: str) -> None:
        """A line above the bar."""
        self._progress.print(text, markup=False, highlight=False)
