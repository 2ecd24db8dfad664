"""Versions of a registered model in MLflow, and their aliases."""

import logging
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from forecast import names
from forecast.config import RegistryConfig
from forecast.errors import RegistryError
from forecast.redaction import without_password
from forecast.tracking.alias_lock import alias_lock
from forecast.tracking.cards import card_of, model_card, note_of, with_card
from forecast.tracking.champions import CHAMPIONS, DEMOTED, FORCED, PROMOTED, REPLACED_VERSION, ROLLED_BACK, Champions
from forecast.tracking.champions import read as read_champions
from forecast.tracking.model_facts import ModelFacts
from forecast.tracking.run import Run
from forecast.tracking.run_store import PARENT_RUN, Record
from forecast.tracking.spool import is_away
from forecast.tracking.store import (
    calls_mlflow,
    connect,
    error_code,
    explained,
    is_server,
    prepare_store,
    tracking_uri,
)
from forecast.tracking.system_metrics import is_enabled
from forecast.tracking.version_store import VersionStore
from forecast.tracking.versions import Version, from_mlflow

if TYPE_CHECKING:
    import polars as pl

__all__ = [
    "DEMOTED",
    "FORCED",
    "PARENT_RUN",
    "REPLACED_VERSION",
    "Record",
    "Registry",
    "Run",
    "Version",
    "prepare_store",
    "tracking_uri",
]
_LOG = logging.getLogger(__name__)
MODEL_TYPE: Final = "forecaster"
"""Type of a LoggedModel, by which MLflow can search."""


class Registry(VersionStore):
    """The runs and versions of one registered model, and the moves of its aliases.

    Raises RegistryError if the store does not answer; a dead server is noticed in seconds. Aliases move under a lock:
    in the database of the store, or in the ledger at the URI `ledger` if the store is behind a server.
    """

    def __init__(self, config: RegistryConfig, ledger: str | None = None) -> None:
        self.uri = tracking_uri(config)
        self._ledger = ledger
        self.name = config.name
        self._spool_root = Path(config.spool) if config.tracking == "best_effort" else None
        self._system_metrics = is_enabled(config)
        with explained(self.uri):
            self._calls, self._client = connect(self.uri)

    @calls_mlflow
    def register(
        self,
        run: Run,
        folder: Path,
        *,
        digest: str,
        tags: Mapping[str, str],
        alias: str | None = None,
        example: "tuple[pl.DataFrame, pl.DataFrame] | None" = None,
        facts: ModelFacts | None = None,
    ) -> Version:
        """Register an artifact folder as a version that any MLflow client can load, and set an alias.

        `example` is a few made-up input rows with their forecasts: they become the signature and the input example. The
        metrics in `facts` are logged here, as metrics of the run and of the model.
        """
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import Model

        from forecast.tracking.registry_files import lineage, save_pyfunc

        if run.spool and run.spool.folder:
            raise RegistryError(f"MLflow store {without_password(self.uri)}: it was away before")
        # Its name allows fewer characters than that of a registered model.
        logged = re.sub(r"""[/:.%"']""", "_", self.name)
        facts, tags_of_model = facts or ModelFacts(), {**tags, "digest": digest}
        note = {"mlflow.note.content": note_of(card_of(facts.description))} if facts.description else {}
        model = self._client.create_logged_model(
            run.experiment_id, f"{logged}-{digest[:8]}", run.id, tags_of_model | note, dict(facts.params), MODEL_TYPE
        )
        run.model_metrics(facts, model.model_id)
        with tempfile.TemporaryDirectory() as temporary:
            described = Model(run_id=run.id, model_id=model.model_id, metadata=lineage(digest, tags))
            local = save_pyfunc(folder, Path(temporary), described, example)
            self._client.log_model_artifacts(model.model_id, local)
        self._client.finalize_logged_model(model.model_id, "READY")
        self._client.log_outputs(run.id, [LoggedModelOutput(model.model_id, 0)])
        try:
            card = card_of(facts.description)
            first_card = with_card("", model_card(self.name, None, card)) if card else None
            self._client.create_registered_model(self.name, description=first_card)
        except Exception as error:
            if error_code(error) != "RESOURCE_ALREADY_EXISTS":
                raise
        # A direct call would resolve models:/ in the store that is set for the whole process.
        source = f"models:/{model.model_id}" if is_server(self.uri) else model.artifact_location
        with self._locked():  # The version registered last for an alias gets it.
            created = self._client.create_model_version(
                self.name,
                source,
                run.id,
                tags=tags_of_model,
                model_id=model.model_id,
                description=facts.description or None,
            )
            if alias:
                self._point(alias, int(created.version))
        return from_mlflow(created, [alias] if alias else [])

    def postpone(
        self,
        run: Run,
        folder: Path,
        error: RegistryError,
        facts: ModelFacts,
        *,
        digest: str,
        tags: Mapping[str, str],
        alias: str | None,
    ) -> Version:
        """Keep a model folder in the spool of its run if the store is unavailable; return the future version.

        Raises the error if the store is required, or has refused the model.
        """
        cause = error.__cause__
        if run.spool is None or not (run.spool.folder or is_away(cause)):
            raise error
        if run.spool.folder is None:
            run.spool.begin(cause or error)
        run.spool.register(folder, facts, digest=digest, alias=alias, tags=tags)
        return Version(self.name, 0, digest, tags.get("kind", ""), run.id, "", time.time_ns() // 1_000_000, dict(tags))

    @calls_mlflow
    def download(self, version: Version) -> Path:
        """Return the artifact folder of a version.

        The local cache is keyed by digest: an intact version in it needs no request, a damaged one is downloaded again.
        Raises RegistryError, also if the registry's copy is damaged.
        """
        from forecast.tracking.registry_files import download

        return download(self._client, self._calls, self.uri, version)

    @calls_mlflow
    def champions(self) -> Champions:
        """Return the history of the champion alias."""
        return self._champions()

    def _champions(self) -> Champions:
        entry = self._model()
        champions = read_champions(self.name, entry.champions, entry.aliases, self._versions(entry.aliases))
        return replace(champions, description=entry.description)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with alias_lock(self.uri, self._ledger, self.name):
            yield

    @calls_mlflow
    def set_alias(self, alias: str, version: Version, *, registered: int | None = None) -> Version:
        """Point an alias at a version, and return the version that holds it afterwards.

        A version created after `registered`, milliseconds since 1970, keeps the alias.
        """
        with self._locked():
            if registered is not None and (holder := self.find(alias)) is not None and holder.created > registered:
                return holder
            self._point(alias, version.number)
        return version

    def _point(self, alias: str, number: int) -> None:
        if alias == names.CHAMPION:
            self._crown(self._champions(), number)
        else:
            self._client.set_registered_model_alias(self.name, alias, str(number))

    @calls_mlflow
    def hand_over(self, source: Version, heir: Version) -> tuple[str, ...]:
        """Move the aliases of one version to another; return the moved ones."""
        with self._locked():
            aliases = self._model().aliases
            moved = tuple(alias for alias in source.aliases if aliases.get(alias) == source.number)
            for alias in moved:
                self._point(alias, heir.number)
        return moved

    @calls_mlflow
    def delete_alias(self, alias: str) -> None:
        """Remove an alias."""
        with self._locked():
            self._client.delete_registered_model_alias(self.name, alias)

    @calls_mlflow
    def promote(self, challenger: Version, *, basis: Champions | None = None, objection: str = "") -> None:
        """Make a version the champion; no change if it is the champion already.

        `basis` is the history that the decision was based on: raises GateRefused if another version has become champion
        since, or the challenger was rolled back. `objection` is the gate's refusal, for the tag FORCED.
        """
        with self._locked():
            champions = self._champions()
            if champions.number == challenger.number:
                return
            if basis is not None:
                champions.check(basis, challenger)
            self._crown(champions, challenger.number, objection)

    def _crown(self, champions: Champions, number: int, objection: str = "") -> None:
        """Tag the versions, then move the alias."""
        if champions.number == number:
            return
        if champions.damage:
            _LOG.warning("%s; a new one begins with what the tags of the versions say", champions.damage)
        tags = champions.versions[number].tags if number in champions.versions else {}
        changes = {REPLACED_VERSION: str(champions.number or "")}
        changes |= {name: "" for name in (DEMOTED, FORCED) if tags.get(name)}
        changes |= {FORCED: objection} if objection else {}
        self._client.set_registered_model_tag(self.name, CHAMPIONS, champions.tag_after(number, PROMOTED))
        self._tag(number, changes)
        self._client.set_registered_model_alias(self.name, names.CHAMPION, str(number))
        self._describe(champions, number)

    def _describe(self, champions: Champions, number: int) -> None:
        """Update the card of the registered model after a move of the champion; a text of somebody else stays."""
        version = champions.versions.get(number)
        if version is None or not (card := card_of(version.description)):
            return
        since = datetime.now(UTC).isoformat()
        description = with_card(champions.description, model_card(self.name, version, card, since))
        if description is not None:
            self._client.update_registered_model(self.name, description)

    @calls_mlflow
    def rollback(
        self, reason: str, *, to: str | int | None = None, basis: Champions | None = None
    ) -> tuple[Version | None, Version]:
        """Move the champion alias back to an earlier champion; return (from, to), from None without one.

        The target is the previous champion that was not rolled back itself, or `to`, any earlier champion. A tag with
        the reason keeps later promotions and rollbacks from choosing the demoted version. `basis` is the history that
        the decision was based on. Raises RegistryError if it has changed since, or there is nothing to roll back to.
        """
        with self._locked():
            champions = self._champions()
            if basis is not None:
                champions.check_rollback(basis, is_requested=to is not None)
            requested = None if to is None else self.resolve(to, "rollback.to")
            target = champions.rollback_target(requested)
            former = champions.champion
            if target.number == champions.number:
                return target, target
            is_back = champions.number is not None and target.number in champions.line[:-1]
            self._client.set_registered_model_tag(self.name, CHAMPIONS, champions.tag_after(target.number, ROLLED_BACK))
            if former is not None and is_back:
                self._tag(former.number, {DEMOTED: reason})
            if target.tags.get(DEMOTED):
                self._tag(target.number, {DEMOTED: ""})
            self._client.set_registered_model_alias(self.name, names.CHAMPION, str(target.number))
            self._describe(champions, target.number)
        return former or champions.deleted_champion(), target

    def previous(self, champion: Version) -> Version | None:
        """Return the target of a rollback of a champion; None without a target, or for another version."""
        return self.champions().previous(champion)

    @calls_mlflow
    def delete(self, version: Version, *, force: bool = False) -> tuple[str, ...]:
        """Delete a version but not its run; return the aliases deleted with it.

        Raises RegistryError without `force` if it has an alias or child versions, or a rollback would need it.
        """
        with self._locked():
            champions = self._champions()
            if version.number not in champions.versions:
                raise RegistryError(f"{version} is deleted already")
            version = champions.versions[version.number]
            if not force and (reasons := champions.reasons_to_keep(version)):
                raise RegistryError(f"{version} is not deleted: {'; '.join(reasons)}; or set delete.force=true")
            for alias in version.aliases:
                self._client.delete_registered_model_alias(self.name, alias)
            self._client.delete_model_version(self.name, str(version.number))
        return version.aliases
