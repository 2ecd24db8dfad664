"""Who is champion: the history, the way back, what is kept for it, and two processes that move the alias at once."""

import fcntl
import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alias_mover import move_aliases
from flow import refuse, succeed
from mlflow import MlflowClient
from processes import Process

from forecast.config import RegistryConfig
from forecast.errors import GateRefused, RegistryError
from forecast.tracking.champions import CHAMPIONS, DEMOTED, FORCED, REPLACED_VERSION
from forecast.tracking.registry import Registry
from forecast.tracking.versions import Version

NAME = "flights"
MODEL = f"registry.name={NAME}"


@pytest.fixture
def registry(store: str) -> Registry:
    return Registry(RegistryConfig(name=NAME, tracking_uri=store))


@pytest.fixture
def client(store: str) -> MlflowClient:
    return MlflowClient(store)


def make(client: MlflowClient, count: int, **tags: str) -> list[Version]:
    """Register versions without files."""
    names = {model.name for model in client.search_registered_models()}
    if NAME not in names:
        client.create_registered_model(NAME)
    registry = Registry(RegistryConfig(name=NAME, tracking_uri=client.tracking_uri))
    numbers = [client.create_model_version(NAME, "nowhere", tags={"kind": "pretrained", **tags}) for _ in range(count)]
    return [registry.resolve(each.version) for each in numbers]


def champion(registry: Registry) -> int:
    return registry.resolve("champion").number


def demoted(registry: Registry) -> dict[int, str]:
    """Return why versions were rolled back, by their numbers."""
    return {version.number: why for version in registry.versions() if (why := version.tags.get(DEMOTED))}


def test_a_version_that_was_champion_twice_makes_no_rollback_swing(registry: Registry, client: MlflowClient) -> None:
    first, second = make(client, 2)
    for version in (first, second, first):
        registry.promote(version)
    assert registry.champions().line == [1, 2, 1]
    registry.rollback("worse")
    assert (champion(registry), demoted(registry)) == (2, {1: "worse"})
    with pytest.raises(
        RegistryError, match=r"nothing to roll back to: of the champions before flights v2, v1 was ro.*worse"
    ):
        registry.rollback("again")
    # It is returned to if somebody asks for it.
    assert registry.rollback("asked", to="v1")[1].number == 1
    assert (champion(registry), demoted(registry)) == (1, {2: "asked"})


def test_rollbacks_walk_back_and_an_undone_one_is_walked_again(registry: Registry, client: MlflowClient) -> None:
    for version in make(client, 4):
        registry.promote(version)
    assert [registry.rollback("worse")[1].number for _ in range(2)] == [3, 2]
    before, after = registry.rollback("on second thought", to=4)
    assert (before and before.number, after.number) == (2, 4)
    # Who was left for it has done nothing wrong.
    assert demoted(registry) == {3: "worse"}
    assert [registry.rollback("worse")[1].number for _ in range(2)] == [2, 1]
    with pytest.raises(RegistryError, match="nothing to roll back to: flights v1 was the first champion"):
        registry.rollback("worse")


def test_whatever_is_done_no_rollback_goes_to_where_one_has_left_and_the_list_knows_where(
    registry: Registry, client: MlflowClient
) -> None:
    chance, versions = random.Random(5), make(client, 5)
    registry.promote(versions[0])
    client.delete_model_version(NAME, "4")
    for _ in range(30):
        seen = registry.champions()
        target, why = seen.target()
        if chance.random() < 0.5:
            registry.promote(chance.choice([version for version in versions if version.number != 4]))
        elif target is None:
            with pytest.raises(RegistryError) as caught:
                registry.rollback("chance")
            assert why in str(caught.value)
            assert registry.champions() == seen
        else:
            assert not target.tags.get(DEMOTED)
            assert registry.rollback("chance")[1].number == target.number == champion(registry)
            assert demoted(registry)[seen.number or 0] == "chance"
        assert champion(registry) == registry.champions().moves[-1].version
    passed = [registry.rollback("end")[1].number for _ in registry.champions().rollback_versions()]
    assert len(passed) == len(set(passed))
    assert registry.champions().target()[0] is None


def test_only_what_was_champion_is_rolled_back_to(registry: Registry, client: MlflowClient) -> None:
    for version in make(client, 3)[:2]:
        registry.promote(version)
    with pytest.raises(RegistryError, match=r"v3 was never the champion of flights.* \(v1, v2\), or promote it"):
        registry.rollback("asked", to=3)
    with pytest.raises(RegistryError, match=r"no version 7.*set rollback\.to"):
        registry.rollback("asked", to=7)
    assert (champion(registry), demoted(registry)) == (2, {})
    client.delete_registered_model_alias(NAME, "champion")
    with pytest.raises(RegistryError, match=r"nothing to roll back to: flights has no champion; set rollback\.to"):
        registry.rollback("asked")
    before, after = registry.rollback("asked", to=1)
    assert (before, after.number, champion(registry)) == (None, 1, 1)


def test_registries_from_before_the_history_are_read(registry: Registry, client: MlflowClient) -> None:
    make(client, 4)
    for number, replaced in ((1, "2"), (2, "1"), (3, "2")):
        client.set_model_version_tag(NAME, str(number), REPLACED_VERSION, replaced)
    client.set_registered_model_alias(NAME, "champion", "3")
    assert registry.champions().line == [1, 2, 3]
    assert registry.rollback("worse")[1].number == 2
    assert registry.rollback("worse")[1].number == 1
    with pytest.raises(RegistryError, match="nothing to roll back to"):
        registry.rollback("worse")
    registry.promote(registry.resolve(4))
    # Clients of before read this one as they did.
    assert registry.resolve(4).tags[REPLACED_VERSION] == "1"


def test_an_alias_that_another_tool_moved_is_a_part_of_the_history(registry: Registry, client: MlflowClient) -> None:
    for version in make(client, 3)[:2]:
        registry.promote(version)
    client.set_registered_model_alias(NAME, "champion", "3")
    assert registry.champions().line == [1, 2, 3]
    client.set_registered_model_alias(NAME, "champion", "1")
    assert registry.champions().line == [1]
    client.set_registered_model_alias(NAME, "champion", "3")
    assert registry.rollback("worse")[1].number == 2
    assert [move.how for move in registry.champions().moves] == [
        "promoted",
        "promoted",
        "by another tool",
        "rolled back",
    ]


def test_what_was_judged_by_another_champion_changes_nothing(registry: Registry, client: MlflowClient) -> None:
    for version in make(client, 4)[:2]:
        registry.promote(version)
    seen = registry.champions()
    registry.promote(registry.resolve(3))
    with pytest.raises(GateRefused, match="v4 is not promoted: flights v3 has become champion"):
        registry.promote(registry.resolve(4), basis=seen)
    with pytest.raises(RegistryError, match="nothing was rolled back: flights v3 has become champion"):
        registry.rollback("worse", basis=seen)
    assert (champion(registry), demoted(registry)) == (3, {})
    # The same champion as then, but again: what was judged is another reign.
    registry.promote(registry.resolve(2))
    with pytest.raises(RegistryError, match="flights v2 has become champion"):
        registry.rollback("worse", basis=seen)
    seen, third = registry.champions(), registry.resolve(3)
    client.set_model_version_tag(NAME, "3", DEMOTED, "meanwhile")
    with pytest.raises(GateRefused, match="v3 is not promoted: it was rolled back since it was judged: meanwhile"):
        registry.promote(third, basis=seen)
    with pytest.raises(RegistryError, match="it would return to v1 now, not to v3"):
        registry.rollback("worse", basis=seen)
    assert champion(registry) == 2


def test_an_heir_takes_the_aliases_that_have_not_moved(registry: Registry, client: MlflowClient) -> None:
    first, second = make(client, 2)
    for alias in ("champion", "challenger", "pretrained"):
        registry.set_alias(alias, first)
    source = registry.resolve(1)
    assert source.aliases == ("challenger", "champion", "pretrained")
    registry.set_alias("challenger", second)
    (heir,) = make(client, 1)
    assert registry.hand_over(source, heir) == ("champion", "pretrained")
    assert {version.number: version.aliases for version in registry.versions()} == {
        3: ("champion", "pretrained"),
        2: ("challenger",),
        1: (),
    }
    assert registry.champions().line == [1, 3]
    # A version that was made later keeps an alias, whoever comes late.
    assert registry.set_alias("pretrained", first, registered=first.created - 1) == registry.resolve(3)
    assert registry.resolve("pretrained").number == 3


def test_what_is_needed_is_deleted_by_force_only(registry: Registry, client: MlflowClient) -> None:
    first, second, third, fourth = make(client, 4)
    for version in (first, second, third):
        registry.promote(version)
    registry.rollback("worse")
    child = make(client, 1, parent_version="4")[0]
    client.set_registered_model_alias(NAME, "challenger", "5")
    delete = "models", "delete", MODEL
    assert "a rollback would need it (rollbacks return to v1)" in refuse(4, *delete, "registry.alias=1")
    assert "it is the champion; give" in refuse(4, *delete, "registry.alias=2")
    assert "it is the parent of v5" in refuse(4, *delete, "registry.alias=4")
    message = refuse(4, *delete, "registry.alias=challenger")
    assert "it is the challenger" in message
    assert message.endswith("or set delete.force=true\n")
    assert [version.number for version in registry.versions()] == [5, 4, 3, 2, 1]
    # What was rolled back is not returned to, so it goes.
    assert succeed(*delete, "registry.alias=3").lines == ["flights v3 deleted"]
    force = "delete.force=true"
    assert succeed(*delete, f"registry.alias={child.number}", force).lines == [
        "flights v5 deleted, and no version is challenger any more"
    ]
    succeed(*delete, f"registry.alias={fourth.number}")
    succeed(*delete, f"registry.alias={first.number}", force)
    assert "nothing to roll back to: of the champions before flights v2, v1 is deleted" in refuse(
        4, "models", "rollback", MODEL
    )
    with pytest.raises(RegistryError, match="v1 is deleted already"):
        registry.delete(first)
    assert succeed(*delete, "registry.alias=champion", force).lines == [
        "flights v2 deleted, and no version is champion any more"
    ]
    assert "has no alias 'champion'" in refuse(4, "models", "show", MODEL, "registry.alias=champion")


def test_the_history_is_listed_with_what_a_rollback_returns_to(registry: Registry, client: MlflowClient) -> None:
    versions = make(client, 3)
    assert succeed("models", "list", MODEL).out.split()[-3] == "pretrained", "nothing is said of champions"
    for version in versions[:2]:
        registry.promote(version)
    lines = succeed("models", "list", MODEL).lines
    (second,) = (line for line in lines if line.strip().startswith("v2"))
    assert second.rstrip().endswith("to now")
    assert lines[-2].startswith("champions: v1 (promoted, 20")
    assert ") -> v2 (promoted, 20" in lines[-2]
    assert lines[-1] == "a rollback returns to v1"
    assert succeed("models", "show", MODEL).lines[-1] == "a rollback returns to v1"
    shown = dict(line.split(maxsplit=1) for line in succeed("models", "show", MODEL, "registry.alias=2").lines)
    assert shown["rollback"] == "a rollback returns to v1"
    shown = dict(line.split(maxsplit=1) for line in succeed("models", "show", MODEL, "registry.alias=3").lines)
    assert shown["champion"] == "none"
    assert succeed("models", "rollback", MODEL, "rollback.to=1").lines == [f"champion of {NAME}: v2 -> v1"]
    assert succeed("models", "rollback", MODEL, "rollback.to=v1").lines == [f"champion of {NAME}: v1, it already was"]
    assert succeed("models", "list", MODEL).lines[-1] == "nothing to roll back to: flights v1 was the first champion"
    message = refuse(2, "models", "rollback", MODEL, "rollback.to=1", "rollback.series=[a]")
    assert "give one of both" in message


def test_force_promotes_what_the_gate_refuses_and_says_so(registry: Registry, client: MlflowClient) -> None:
    first, second = make(client, 2)
    registry.promote(first)
    promote = "promote", MODEL, "registry.alias=2"
    assert "v2 has no backtest" in refuse(5, *promote)
    line = "flights v2 is champion: promote.force=true, although flights v2 has no backtest"
    assert succeed(*promote, "promote.force=true").lines == [line]
    assert (champion(registry), registry.resolve(2).tags[FORCED]) == (2, "flights v2 has no backtest")
    succeed("models", "rollback", MODEL)
    assert "it was the champion and was rolled back: by forecast models rollback" in refuse(5, *promote)
    succeed(*promote, "promote.force=true")
    tags = registry.resolve(2).tags
    assert tags[FORCED] == "it was the champion and was rolled back: by forecast models rollback"
    assert tags[DEMOTED] == ""
    # It is one more champion in the history, which takes the way back as any other.
    assert registry.rollback("worse")[1].number == 1
    registry.promote(second)
    assert registry.resolve(2).tags[FORCED] == "", "this time nobody forced it"


@pytest.mark.parametrize(
    "tag", ["{", "[1]", '[{"version": "1", "at": "", "how": ""}]', "null", '{"a": 1}', "[" * 10_000]
)
def test_a_damaged_history_is_told_and_mended(registry: Registry, client: MlflowClient, tag: str) -> None:
    for version in make(client, 3)[:2]:
        registry.promote(version)
    client.set_registered_model_tag(NAME, CHAMPIONS, tag)
    message = refuse(4, "models", "rollback", MODEL)
    assert "nothing to roll back to: the history of champions, the tag `champions`" in message
    assert "set rollback.to to a version" in message
    assert champion(registry) == 2
    assert "can't be read" in succeed("models", "list", MODEL).out
    assert "rollback would need it" in refuse(4, "models", "delete", MODEL, "registry.alias=1")
    succeed("promote", MODEL, "registry.alias=3", "promote.force=true")
    assert registry.champions().line == [1, 2, 3]
    assert registry.champions().damage == ""
    client.set_registered_model_tag(NAME, CHAMPIONS, tag)
    assert registry.rollback("asked", to=1)[1].number == 1
    assert (champion(registry), registry.champions().line) == (1, [1])


def test_versions_and_runs_that_are_gone_are_told(registry: Registry, client: MlflowClient, store: str) -> None:
    versions = make(client, 4)
    for version in versions[:3]:
        registry.promote(version)
    client.set_registered_model_alias(NAME, "challenger", "2")
    # By hand in the database: MLflow takes aliases and versions together.
    with closing(sqlite3.connect(store.removeprefix("sqlite:///"))) as connection:
        connection.execute("update model_versions set current_stage = 'Deleted_Internal' where version in (2, 3)")
        connection.commit()
    message = refuse(4, "models", "show", MODEL, "registry.alias=champion")
    assert "flights v3, which the alias 'champion' means, is deleted; give the alias to another version" in message
    out = succeed("models", "list", MODEL).out
    assert "warning: the alias challenger means v2, which is deleted" in out
    assert "warning: the alias champion means v3, which is deleted" in out
    assert "a rollback returns to v1" in out
    succeed("models", "show", MODEL)
    assert "no version 2" in refuse(4, "models", "rollback", MODEL, "rollback.to=2")
    assert succeed("models", "rollback", MODEL).lines == [f"champion of {NAME}: v3 -> v1"]
    # Tags that are no numbers, and a run that is gone.
    experiment = client.get_experiment_by_name(NAME)
    assert experiment is not None
    run = client.create_run(experiment.experiment_id)
    odd = client.create_model_version(NAME, "nowhere", run.info.run_id, tags={"parent_version": "x", "kind": "y"})
    client.set_model_version_tag(NAME, odd.version, REPLACED_VERSION, "?")
    client.delete_run(run.info.run_id)
    assert run.info.run_id in succeed("models", "show", MODEL, f"registry.alias={odd.version}").out
    succeed("models", "show", MODEL)
    client.delete_registered_model_tag(NAME, CHAMPIONS)
    client.set_registered_model_alias(NAME, "champion", odd.version)
    assert "was the first champion" in refuse(4, "models", "rollback", MODEL)


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"champion": 1}', '{"champion": 1, "challenger": "x", "targets_until": [7]}']
)
def test_a_damaged_backtest_promotes_nothing(
    registry: Registry, client: MlflowClient, tmp_path: Path, content: str
) -> None:
    registry.promote(make(client, 1)[0])
    run = client.create_run(client.create_experiment(NAME, tmp_path.as_uri()))
    client.log_text(run.info.run_id, content, "backtest.json")
    make(client, 1, backtest_run=run.info.run_id)
    message = refuse(4, "promote", MODEL, "registry.alias=2")
    assert f"backtest.json of run {run.info.run_id} is" in message
    client.log_text(run.info.run_id, '{"champion": 1, "challenger": "pretrained"}', "backtest.json")
    client.log_text(run.info.run_id, "PAR1", "scores.parquet")
    assert f"scores.parquet of run {run.info.run_id} is damaged" in refuse(4, "promote", MODEL, "registry.alias=2")
    assert champion(registry) == 1
    done = succeed("promote", MODEL, "registry.alias=2", "promote.force=true")
    assert f"promote.force=true, although scores.parquet of run {run.info.run_id} is damaged" in done.out


def test_a_backtest_that_is_gone_and_versions_whose_parents_are_odd(registry: Registry, client: MlflowClient) -> None:
    registry.promote(make(client, 1)[0])
    make(client, 1, backtest_run="f" * 32, parent_version="2")
    make(client, 1, parent_version="4")
    make(client, 1, parent_version="x")
    message = refuse(5, "promote", MODEL, "registry.alias=2")
    assert f"v2 has no backtest any more: its run {'f' * 32} is deleted; run forecast backtest" in message
    shown = [line.split()[0] for line in succeed("models", "show", MODEL).lines if line.strip().startswith("v")]
    assert shown == ["version", "v1", "v2", "v3", "v4"]
    out = succeed("report", MODEL, "registry.alias=3", "output.path=page").out
    assert out.startswith(f"{NAME} v3: 0 series")
    assert "flights v3" in Path("page/report.html").read_text()


@pytest.mark.parametrize("target", ["a folder", "a file", "a link"])
@pytest.mark.usefixtures("store")
def test_an_export_overwrites_nothing_and_says_what_to_do(client: MlflowClient, tmp_path: Path, target: str) -> None:
    make(client, 1)
    out = tmp_path / "out"
    if target == "a folder":
        (out / "notes").mkdir(parents=True)
    elif target == "a file":
        out.write_text("mine")
    else:
        out.symlink_to(tmp_path / "nowhere")
    message = refuse(6, "models", "export", MODEL, "registry.alias=1", f"output.path={out}")
    assert "nothing is overwritten: give a new or empty output.path, or remove that first" in message
    assert ("1 files or folders: notes" in message) == (target == "a folder")


class Mover(Process):
    """A process that moves aliases (`alias_mover.py`)."""

    def __init__(self) -> None:
        super().__init__(move_aliases)

    def send(self, *words: object) -> None:
        self.connection.send(words)

    def answer(self) -> Any:
        return self.connection.recv()

    def look(self, store: str, *, pauses: bool = False) -> None:
        self.send("look", store, NAME, pauses)
        assert self.answer() == ["ready"]


@pytest.fixture(scope="module")
def movers() -> Iterator[tuple[Mover, Mover]]:
    both = Mover(), Mover()
    yield both
    for mover in both:
        mover.kill()


def test_of_two_promotions_at_once_one_is_refused(
    movers: tuple[Mover, Mover], registry: Registry, client: MlflowClient, store: str
) -> None:
    registry.promote(make(client, 1)[0])
    line = [1]
    for _ in range(4):
        pair = make(client, 2)
        for mover in movers:
            mover.look(store)
        for mover, version in zip(movers, pair, strict=True):
            mover.send("promote", version.number)
        answers = [mover.answer() for mover in movers]
        (winner,) = (version for version, answer in zip(pair, answers, strict=True) if answer[0] == "done")
        (refusal,) = (answer for answer in answers if answer[0] != "done")
        assert refusal[0] == "GateRefused"
        assert f"{winner} has become champion" in refusal[1]
        line.append(winner.number)
        assert (champion(registry), registry.champions().line) == (winner.number, line)


def test_of_two_trainings_at_once_the_later_version_has_the_alias(
    movers: tuple[Mover, Mover], registry: Registry, client: MlflowClient, store: str, tmp_path: Path
) -> None:
    make(client, 1)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "manifest.json").write_text("{}")
    for latest in (3, 5):
        for mover in movers:
            mover.look(store)
        for mover in movers:
            mover.send("register", str(tmp_path / "model"), "pretrained")
        assert sorted(mover.answer()[1] for mover in movers) == [latest - 1, latest]
        assert registry.resolve("pretrained").number == latest


def test_a_rollback_does_not_undo_a_promotion_that_comes_between(
    movers: tuple[Mover, Mover], registry: Registry, client: MlflowClient, store: str
) -> None:
    registry.promote(make(client, 1)[0])
    for _ in range(4):
        bad, good = make(client, 2)
        registry.promote(bad)
        for mover in movers:
            mover.look(store)
        before = registry.champions().target()[0]
        assert before is not None
        movers[0].send("rollback", "worse")
        movers[1].send("promote", good.number)
        rolled_back, promoted = (mover.answer() for mover in movers)
        if rolled_back[0] == "done":
            assert promoted[0] == "GateRefused"
            assert (champion(registry), rolled_back[1]) == (before.number, before.number)
            assert demoted(registry)[bad.number] == "worse"
        else:
            assert (rolled_back[0], promoted[0], champion(registry)) == ("RegistryError", "done", good.number)
            assert bad.number not in demoted(registry)
        assert good.number not in demoted(registry)


def test_who_moves_an_alias_is_alone_and_a_kill_leaves_what_was(
    movers: tuple[Mover, Mover], registry: Registry, client: MlflowClient, store: str, tmp_path: Path
) -> None:
    first, second, third = make(client, 3)
    registry.promote(first)
    registry.promote(second)
    killed = Mover()
    killed.look(store, pauses=True)
    movers[0].look(store)
    movers[1].look(store)
    killed.send("rollback", "killed")
    assert killed.answer() == ["paused"]
    with (tmp_path / ".mlflow.db.aliases.lock").open() as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    movers[0].send("promote", third.number)
    assert champion(registry) == 2
    killed.kill()
    assert movers[0].answer() == ["done", None]
    assert (champion(registry), registry.champions().line) == (3, [1, 2, 3])
    movers[1].send("rollback", "late")
    assert movers[1].answer()[0] == "RegistryError"
    assert champion(registry) == 3
