"""What the tests of every op's backends have in common."""

from __future__ import annotations

import abc

from pallas_kernels.dispatch import DeviceTarget


class OpContract(abc.ABC):
    """A backend and what it runs on; an op's contract adds the checks."""

    @property
    @abc.abstractmethod
    def target(self) -> DeviceTarget:
        """The device that the op is compiled for."""

    @property
    @abc.abstractmethod
    def backend(self) -> str:
        """The backend's name."""
