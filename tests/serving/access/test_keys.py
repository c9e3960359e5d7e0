"""The file of keys: what is in it, what is not, and what a mistake in it says."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from serving.access import keys
from serving.access.caller import ANYONE
from serving.commands.keys import main

SHA = "0" * 64


def test_a_key_is_found_by_itself_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    first, first_id = keys.add_key(path, "acme", ["infer"], keys.KeyLimits(max_concurrency=3))
    second, _ = keys.add_key(path, "other", ["infer", "admin"], keys.KeyLimits())
    found = keys.load(path)
    caller, key = found.find(first) or pytest.fail("not found")
    assert (caller.tenant, caller.key, caller.roles) == ("acme", first_id, {"infer"})
    assert key.max_concurrency == 3
    caller, _ = found.find(second) or pytest.fail("not found")
    assert (caller.tenant, caller.roles) == ("other", {"infer", "admin"})
    swapped = first[:16] + second[16:]  # one's id with the other's secret
    for wrong in ("", "x", first[:-1], first + "x", first.upper(), swapped, "jx-" + "0" * 12 + first[15:], "ü" * 300):
        assert found.find(wrong) is None, wrong


def test_the_file_has_no_secret_and_is_its_owners(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    key, _ = keys.add_key(path, "acme", ["infer"], keys.KeyLimits())
    assert key.split("-", 2)[2] not in path.read_text()
    assert len(key.split("-", 2)[2]) == 43  # 256 bits
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o640)
    keys.add_key(path, "acme", ["infer"], keys.KeyLimits())
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert sorted(p.name for p in tmp_path.iterdir()) == ["keys.toml", "keys.toml.lock"]


def test_what_an_operator_wrote_stays(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text('# ours\n[tenants.acme]\nweight = 2\nprefix_cache_group = "shared"')
    key, _ = keys.add_key(path, "acme", ["infer"], keys.KeyLimits(requests_per_minute=5))
    assert path.read_text().startswith("# ours\n[tenants.acme]")
    caller, _ = keys.load(path).find(key) or pytest.fail("not found")
    assert (caller.weight, caller.scope) == (2, "group/shared")


def test_disabled_and_expired_keys_are_none(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    key, _ = keys.add_key(path, "acme", ["infer"], keys.KeyLimits())
    text = path.read_text()
    for line, valid in (
        ("disabled = true", False),
        ("expires = 2020-01-01T00:00:00Z", False),
        ("expires = 2999-01-01T00:00:00Z", True),
        ("expires = 2020-01-01T00:00:00", False),
    ):
        path.write_text(text + line)
        assert (keys.load(path).find(key) is not None) == valid, line


def test_salts_of_different_scopes_never_meet(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(
        '[tenants.a]\nprefix_cache_group = "c"\n[tenants.b]\nprefix_cache_group = "c"\n'  # shared
        + "".join(
            f'[[keys]]\nid = "00000000000{i}"\nsha256 = "{SHA}"\ntenant = "{t}"\nroles = ["infer"]\n'
            for i, t in enumerate("abcd")
        )
    )
    found = keys.load(path)
    callers = {key.tenant: found.caller(key) for key in found.keys.values()}
    assert callers["a"].salt("x") == callers["b"].salt("x")
    others = [callers[name].salt(salt) for name in "acd" for salt in ("", "x", "1", ":", "tenant/c")]
    assert len(set(others)) == len(others)
    assert ANYONE.salt("x") == "x"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("keys = 3", r"Expected `array`, got `int` - at `\$.keys`"),
        ("[[keys]", "is no TOML"),
        ("[tenants.a]\nweigth = 2", "weigth"),
        ("[tenants.a]\nrequests_per_minute = 0", "requests_per_minute"),
        ("[tenants.'a b']\n", "tenants"),
        (f'[[keys]]\nid = "0123456789ab"\nsha256 = "{SHA}"\ntenant = "a"\nroles = ["root"]', "roles has 'root'"),
        (f'[[keys]]\nid = "0123456789ab"\nsha256 = "{SHA}"\ntenant = "a"\nroles = []', "roles"),
        (f'[[keys]]\nid = "0123456789ab"\nsha256 = "{SHA[1:]}"\ntenant = "a"\nroles = ["infer"]', "sha256"),
        (2 * f'[[keys]]\nid = "0123456789ab"\nsha256 = "{SHA}"\ntenant = "a"\nroles = ["infer"]\n', "as another key's"),
    ],
)
def test_mistakes_are_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(keys.KeysError, match=message):
        keys.load(path)
    with pytest.raises(keys.KeysError):  # nothing is added to what cannot be read
        keys.add_key(path, "a", ["infer"], keys.KeyLimits())
    assert path.read_text() == text


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys.toml"
    limits = ["--requests-per-minute", "60", "--tokens-per-minute", "1000", "--max-concurrency", "4"]
    assert main(["new", "--file", str(path), "--tenant", "t", "--role", "admin", *limits]) == 0
    printed = capsys.readouterr()
    caller, key = keys.load(path).find(printed.out.strip()) or pytest.fail("not found")
    assert (key.requests_per_minute, key.tokens_per_minute, key.max_concurrency) == (60, 1000, 4)
    assert caller.roles == {"admin"}
    assert printed.out.strip() not in printed.err
    assert main(["new", "--file", str(path), "--tenant", "t", "--expires-in-days", "1"]) == 0
    assert keys.load(path).find(capsys.readouterr().out.strip()) is not None
    assert main(["list", "--file", str(path)]) == 0
    shown = capsys.readouterr().out
    assert key.id in shown
    assert key.sha256 not in shown
    for bad in (["--tenant", "a b"], ["--tenant", "t", "--role", "root"], ["--tenant", "t", "--max-concurrency", "0"]):
        with pytest.raises(SystemExit) as end:
            main(["new", "--file", str(path), *bad])
        assert end.value.code == 2
    assert main(["list", "--file", str(tmp_path / "none")]) == 2
    assert "cannot be read" in capsys.readouterr().err
