"""Which library makes the matrix products goes by the processor, and falls back where there is none."""

import pytest
import torch

from vaecli import devices, products
from vaecli.devices import choose_library
from vaecli.errors import UsageError
from vaecli.products import has_onednn

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("vendor", "capability", "setting", "chosen"),
    [
        ("AuthenticAMD", "AVX512", "auto", "onednn"),
        ("AuthenticAMD", "AVX2", "auto", "torch"),
        ("GenuineIntel", "AVX512", "auto", "torch"),
        (None, "AVX512", "auto", "torch"),
        ("AuthenticAMD", "AVX512", "torch", "torch"),
        ("GenuineIntel", "AVX2", "onednn", "onednn"),
    ],
)
def test_the_library_goes_by_the_processor(monkeypatch, vendor, capability, setting, chosen):
    monkeypatch.setattr(devices, "_of_processor", {"vendor_id": vendor}.get)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(devices, "has_onednn", lambda device: device.type == "cpu")
    assert choose_library(setting, CPU) == chosen
    assert choose_library(setting, torch.device("meta")) == "torch"


@pytest.mark.parametrize("fault", ["missing", "wrong"])
def test_what_is_not_public_is_tried_before_it_is_relied_on(monkeypatch, fault):
    def operator(x, weight, bias):
        if fault == "missing":
            raise AttributeError("no such operator")
        return torch.addmm(bias, x, weight.t()) + 1e-3

    monkeypatch.setattr(products, "_onednn_linear", operator)
    monkeypatch.setattr(devices, "_of_processor", {"vendor_id": "AuthenticAMD"}.get)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    has_onednn.cache_clear()
    try:
        assert choose_library("auto", CPU) == "torch"
        with pytest.raises(UsageError, match="onednn is not to be had"):
            choose_library("onednn", CPU)
    finally:
        has_onednn.cache_clear()
