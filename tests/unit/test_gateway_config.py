"""What Envoy is told: its configuration, its apps, its counters."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovecote.errors import Invalid
from dovecote.gateway.apps import LINGER, AppFile, plan_apps, read_apps, render_apps
from dovecote.gateway.bootstrap import Front, Sockets, bootstrap, render_certificate
from dovecote.gateway.certificates import Authority
from dovecote.gateway.clusters import KEY_HEADER, Json
from dovecote.gateway.envoy import envoy_command, envoy_path
from dovecote.gateway.replies import REPLIES
from dovecote.gateway.stats import Load, app_loads, parse_counters

NAMES = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
ADDRESSES = st.lists(st.builds("10.201.{}.{}:{}".format, *[st.integers(1, 254)] * 2, st.integers(1, 65535)), max_size=3)
APPS = st.dictionaries(NAMES, ADDRESSES, max_size=5)


def rendered(directory: Path, tls_port: int = 0) -> Json:
    names = [
        "api.sock",
        "python.sock",
        "wake.sock",
        "admin.sock",
        "tls/certificate.json",
        "apps/clusters.json",
        "streams",
    ]
    front = Front("127.0.0.1", 8080, "localhost", 10, 60.0, "secret", tls_port)
    return bootstrap(front, Sockets(*(directory / name for name in names)))


@pytest.mark.parametrize("tls_port", [0, 8443])
def test_envoy_accepts_the_configuration_and_the_apps(tmp_path: Path, tls_port: int) -> None:
    config = rendered(tmp_path, tls_port)
    (tmp_path / "tls").mkdir()
    pair = Authority(tmp_path, "localhost").current(datetime.now(UTC))
    (tmp_path / "tls" / "certificate.json").write_text(json.dumps(render_certificate(*pair)))
    apps = render_apps({"shop": ["10.0.0.1:80", "10.0.0.2:80"], "idle": []})
    for cluster in apps["resources"]:
        config["static_resources"]["clusters"].append({key: value for key, value in cluster.items() if key != "@type"})
    AppFile(tmp_path / "apps" / "clusters.json").open(is_kept=True)
    path = tmp_path / "envoy.json"
    path.write_text(json.dumps(config))
    command = [str(envoy_path()), "--mode", "validate", "--config-path", str(path), "--disable-hot-restart"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_command_line() -> None:
    command = envoy_command(Path("/bin/envoy"), Path("/run/envoy.json"), 2)
    assert " ".join(command) == (
        "/bin/envoy --config-path /run/envoy.json --concurrency 2 --disable-hot-restart"
        " --log-level warning --component-log-level upstream:error --drain-time-s 2 --file-flush-interval-msec 500"
    )


def test_the_key_is_taken_off_wherever_instances_answer(tmp_path: Path) -> None:
    listener = rendered(tmp_path)["static_resources"]["listeners"][0]
    hosts = listener["filter_chains"][0]["filters"][0]["typed_config"]["route_config"]["virtual_hosts"]
    for host in hosts:
        for route in host["routes"]:
            is_api = route["metadata"]["filter_metadata"]["lua"]["kind"] == "api"
            assert (KEY_HEADER in route.get("request_headers_to_remove", [])) == (not is_api), host["name"]


def test_each_error_of_envoy_has_a_code_a_message_and_a_hint_that_need_no_escaping() -> None:
    for reply in REPLIES:
        assert re.fullmatch(r"[a-z_]+", reply.code)
        assert reply.message
        assert reply.hint
        assert "%" not in reply.message + reply.hint
        assert reply.flags or reply.was


@given(APPS)
def test_apps_are_read_back_as_they_were_told(apps: dict[str, list[str]]) -> None:
    assert read_apps(render_apps(apps)) == {app: tuple(addresses) for app, addresses in apps.items()}


@given(told=APPS, wanted=APPS, now=st.floats(0, 10_000))
def test_a_plan_holds_all_that_live_and_nothing_that_is_unknown(
    told: dict[str, list[str]], wanted: dict[str, list[str]], now: float
) -> None:
    planned = plan_apps(told, wanted, {}, now)
    assert {app for app, addresses in planned.items() if addresses} == {
        a for a, addresses in wanted.items() if addresses
    }
    assert set(planned) <= set(wanted)


def test_an_app_at_zero_keeps_its_clusters_for_a_while() -> None:
    assert plan_apps({"a": ("10.0.0.1:80",)}, {"a": []}, {}, 5.0) == {"a": ()}
    assert plan_apps({"a": ()}, {"a": []}, {"a": 5.0}, 5.0 + LINGER) == {}
    assert plan_apps({"a": ()}, {}, {"a": 5.0}, 6.0) == {}
    assert plan_apps({}, {"never-visited": []}, {}, 5.0) == {}


def test_a_file_that_would_not_change_is_not_written(tmp_path: Path) -> None:
    file = AppFile(tmp_path / "apps" / "clusters.json")
    file.open(is_kept=True)
    file.set({"shop": ["10.0.0.1:80"], "idle": []}, now=1.0)
    before = file.path.stat().st_ino
    file.set({"shop": ["10.0.0.1:80"]}, now=2.0)
    assert file.path.stat().st_ino == before
    again = AppFile(file.path)
    again.open(is_kept=True)
    again.set({"shop": ["10.0.0.1:80"]}, now=3.0)
    assert file.path.stat().st_ino == before


@pytest.mark.parametrize(
    "apps", [{"Shop": ["10.0.0.1:80"]}, {"a/b": []}, {"shop": ["host:80"]}, {"shop": ["1.2.3.4:0"]}]
)
def test_a_wrong_name_or_address_changes_nothing(tmp_path: Path, apps: dict[str, Sequence[str]]) -> None:
    file = AppFile(tmp_path / "apps" / "clusters.json")
    file.open(is_kept=True)
    before = file.path.read_text()
    with pytest.raises(Invalid):
        file.set({"good": ["10.0.0.1:80"], **apps}, now=1.0)
    assert file.path.read_text() == before


def test_a_damaged_file_of_apps_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "clusters.json"
    path.write_text('{"resources": [')
    AppFile(path).open(is_kept=True)
    assert json.loads(path.read_text()) == {"resources": []}


def test_loads_join_what_envoy_counts_with_what_is_held() -> None:
    counters = parse_counters(
        "cluster.app/shop/instances.upstream_rq_active: 2\ncluster.app/shop/instances.upstream_rq_total: 10\n"
        "cluster.app/shop.upstream_rq_total: 99\nserver.state: LIVE\nnothing\n"
    )
    assert app_loads(counters, {"cold": 3}, {"shop": 4, "cold": 1}) == {
        "shop": Load(active=2, total=14),
        "cold": Load(active=0, total=1, waiting=3),
    }


def test_what_a_former_envoy_was_told_is_not_told_to_a_new_one(tmp_path: Path) -> None:
    """The addresses of then may belong to other tenants by now."""
    file = AppFile(tmp_path / "clusters.json")
    file.open(is_kept=False)
    file.set({"shop": ["10.0.0.1:80"]}, now=1.0)
    AppFile(file.path).open(is_kept=False)
    assert json.loads(file.path.read_text()) == {"resources": []}
