"""Telemetry under mocked NVML: none, no permission, MIG, a shared card, a slowed one, several."""

import json
from types import SimpleNamespace

import pytest

from kvcalc.profiling.measure.telemetry import NA, Conditions, Monitor, Reading, open_monitor, shown, span


class NVMLError(Exception):
    """As pynvml raises it."""


class FakeNvml:
    """A stand-in for the module pynvml: cards by index, and queries that a scenario forbids."""

    NVMLError = NVMLError
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self, *, cards=1, pids=(), reasons=0, mig=False, forbidden=(), init_error=None):
        self.cards, self.pids, self.reasons, self.mig = cards, pids, reasons, mig
        self.forbidden, self.init_error, self.energy_mj = forbidden, init_error, 1_000_000
        self.asked_of = set()

    def __getattribute__(self, name):
        if name.startswith("nvml") and name in object.__getattribute__(self, "forbidden"):

            def refuse(*arguments):
                raise NVMLError("Insufficient Permissions")

            return refuse
        return object.__getattribute__(self, name)

    def nvmlInit(self):  # noqa: N802
        if self.init_error:
            raise NVMLError(self.init_error)

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        if index >= self.cards:
            raise NVMLError("Invalid Argument")
        return f"card {index}"

    def nvmlDeviceGetHandleByUUID(self, uuid):  # noqa: N802
        known = {f"GPU-{index}": f"card {index}" for index in range(self.cards)} | {"MIG-7": "slice"}
        if uuid not in known:
            raise NVMLError("Not Found")
        return known[uuid]

    def nvmlDeviceIsMigDeviceHandle(self, handle):  # noqa: N802
        return handle == "slice"

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, handle):  # noqa: N802
        return "card 0"

    def nvmlDeviceGetClockInfo(self, card, clock):  # noqa: N802
        self.asked_of.add(card)
        return {1: 1980, 2: 2619}[clock]

    def nvmlDeviceGetMaxClockInfo(self, card, clock):  # noqa: N802
        return 1980

    def nvmlDeviceGetPowerUsage(self, card):  # noqa: N802
        return 612_000

    def nvmlDeviceGetEnforcedPowerLimit(self, card):  # noqa: N802
        return 700_000

    def nvmlDeviceGetTemperature(self, card, sensor):  # noqa: N802
        return 55

    def nvmlDeviceGetCurrentClocksEventReasons(self, card):  # noqa: N802
        return self.reasons

    def nvmlDeviceGetTotalEnergyConsumption(self, card):  # noqa: N802
        self.energy_mj += 2_000
        return self.energy_mj

    def nvmlDeviceGetComputeRunningProcesses(self, handle):  # noqa: N802
        return [SimpleNamespace(pid=pid) for pid in self.pids]

    def nvmlSystemGetDriverVersion(self):  # noqa: N802
        return b"580.1"


def watched(nvml, **options):
    """The conditions of a block under a scenario."""
    monitor = open_monitor(index=0, nvml=nvml)
    for name, value in options.items():
        setattr(monitor, name, value)
    with monitor.watching() as watch:
        pass
    return watch.conditions


def test_a_quiet_card_is_read_before_during_and_after():
    found = watched(FakeNvml(pids=(41,)), _own_pid=41)
    assert found.before == found.after == found.during[0]
    assert found.before.sm_clock_hz == 1_980_000_000
    assert found.before.power_w == 612.0
    assert found.energy_j == pytest.approx(2.0)
    assert found.other_processes == 0
    assert found.warnings == []


def test_without_nvml_everything_is_unknown_and_nothing_is_an_error(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    monitor = open_monitor(index=0)
    assert "not installed" in monitor.reason
    with monitor.watching() as watch:
        pass
    assert watch.conditions == Conditions()
    assert monitor.static() == {"available": False, "reason": monitor.reason}
    assert watch.conditions.to_json()["during"]["sm_clock_hz"] is None


def test_a_driver_that_is_not_there_is_a_reason():
    monitor = open_monitor(index=0, nvml=FakeNvml(init_error="Driver Not Loaded"))
    assert "Driver Not Loaded" in monitor.reason
    assert monitor.read() == Reading()


def test_what_is_forbidden_is_unknown_and_the_rest_is_read():
    forbidden = (
        "nvmlDeviceGetPowerUsage",
        "nvmlDeviceGetTotalEnergyConsumption",
        "nvmlDeviceGetComputeRunningProcesses",
    )
    found = watched(FakeNvml(forbidden=forbidden))
    assert found.before.power_w is None
    assert found.power_w is None
    assert found.other_processes is None
    assert found.before.temperature_c == 55
    assert found.warnings == []


def test_an_nvml_without_a_query_is_asked_under_its_older_name():
    nvml = FakeNvml()
    nvml.nvmlDeviceGetCurrentClocksThrottleReasons = lambda card: 0x40
    nvml.nvmlDeviceGetCurrentClocksEventReasons = None
    assert open_monitor(index=0, nvml=nvml).read().throttle_reasons == ("hardware thermal slowdown",)


def test_a_mig_slice_has_its_processes_and_the_cards_clocks_but_no_energy():
    nvml = FakeNvml(pids=(1, 2))
    monitor = open_monitor(index=0, uuid="7", nvml=nvml)
    assert monitor.mig
    assert monitor.handle == "slice"
    assert monitor.read().sm_clock_hz == 1_980_000_000
    assert nvml.asked_of == {"card 0"}
    assert monitor.energy_j() is None
    assert monitor.static()["mig"] is True


def test_a_shared_card_is_warned_of():
    assert watched(FakeNvml(pids=(41, 77)), _own_pid=41).warnings == ["another process had the card too"]
    assert watched(FakeNvml(pids=(41, 77, 78)), _own_pid=41).other_processes == 2


def test_in_a_container_one_of_the_listed_processes_is_this_one():
    assert watched(FakeNvml(pids=(77,)), _own_pid=41).other_processes == 0
    assert watched(FakeNvml(pids=(77, 78)), _own_pid=41).other_processes == 1
    assert watched(FakeNvml(pids=()), _own_pid=41).other_processes == 0


@pytest.mark.parametrize(
    ("mask", "names"),
    [
        (0x1 | 0x2, ()),  # idle, and clocks that someone set
        (0x4, ("power cap",)),
        (0x8 | 0x40, ("hardware slowdown", "hardware thermal slowdown")),
        (0x20 | 0x80, ("software thermal slowdown", "hardware power brake")),
    ],
)
def test_a_slowed_card_is_warned_of_with_the_reasons(mask, names):
    found = watched(FakeNvml(reasons=mask))
    assert found.throttle_reasons == names
    assert found.warnings == ([f"the card was slowed down ({', '.join(names)})"] if names else [])


def test_of_several_cards_the_one_that_cuda_means_is_read():
    nvml = FakeNvml(cards=3)
    open_monitor(index=0, uuid="2", nvml=nvml).read()  # CUDA_VISIBLE_DEVICES=2 makes it cuda:0
    assert nvml.asked_of == {"card 2"}
    nvml = FakeNvml(cards=2)
    open_monitor(index=1, nvml=nvml).read()
    assert nvml.asked_of == {"card 1"}


def test_a_card_that_nvml_does_not_have_is_a_reason():
    assert "Invalid Argument" in open_monitor(index=5, nvml=FakeNvml(cards=2)).reason


def test_conditions_are_json_without_nan():
    json.dumps(watched(FakeNvml(reasons=4)).to_json(), allow_nan=False)
    json.dumps(Conditions().to_json(), allow_nan=False)


def test_unknown_values_flow_through():
    assert shown(None, " W") == NA
    assert shown(3, " W") == "3 W"
    assert span([None, None]) is None
    assert span([None, 2, 4]) == {"least": 2, "mean": 3.0, "most": 4}
    assert Conditions(during=(Reading(power_w=100.0), Reading(), Reading(power_w=200.0))).power_w == 150.0
    assert Monitor(reason="none").other_processes() is None
