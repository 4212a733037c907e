"""The page of the server without a browser: its files, who may have them, and the data for it."""

from __future__ import annotations

import pytest

from sluicegate import Context, Event, StartEvent, StopEvent, Workflow, step
from sluicegate.serve import asgi_app, bearer_token
from sluicegate.serve._page_data import page_files
from tests.serve.driver import client_of
from tests.serve.flows import Essay


pytestmark = pytest.mark.anyio

SECRET = "the password is hunter2"


class Trouble(Event):
    errors: list[BaseException]
    error: BaseException


class Inner(Workflow[str]):
    """Ends at once."""

    @step
    async def go(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result="inner")


class Failing(Workflow[str]):
    """Runs a child, publishes exceptions, and fails."""

    @step
    async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
        await ctx.run_child(Inner())
        error = LookupError(SECRET)
        ctx.write_event_to_stream(Trouble(errors=[error], error=error))
        raise error


async def test_files_need_no_token_and_data_does():
    """The page can be loaded, to ask for the token; everything about workflows and runs is refused."""
    app = asgi_app({"essay": Essay()}, authenticate=bearer_token("secret"))
    async with client_of(app) as client:
        for path in ("/", "/assets/app.js", "/assets/vendor/preact.js", "/assets/config.json"):
            assert (await client.get(path)).status == 200, path
        settings = (await client.get("/assets/config.json")).json
        assert settings["authenticates"] is True
        assert settings["read_only"] is False
        for path in ("/workflows/essay/picture", "/handlers/a/timeline", "/handlers/a/state"):
            assert (await client.get(path)).status == 401, path


async def test_everything_that_the_page_refers_to_is_there():
    """Each file is sent with its type and its policy, and not again while it is the same."""
    async with client_of(asgi_app({"essay": Essay()})) as client:
        for name in page_files():
            response = await client.get("/" if name == "index.html" else f"/assets/{name}")
            assert response.status == 200
            assert response.body
            assert response.headers["content-security-policy"].startswith("default-src 'none'")
            assert response.headers["x-content-type-options"] == "nosniff"
            again = await client.get(
                f"/assets/{name}", headers={"if-none-match": response.headers["etag"]}
            )
            assert (again.status, again.body) == (304, b"")
        assert (await client.get("/assets/../_app.py")).status == 404
        assert (await client.get("/assets/page.css.map")).status == 404


async def test_without_the_page():
    """``page=False`` leaves nothing of it."""
    async with client_of(asgi_app({"essay": Essay()}, page=False)) as client:
        for path in ("/", "/assets/app.js", "/workflows/essay/picture"):
            assert (await client.get(path)).status == 404


async def test_mounted_without_a_slash_the_page_is_found():
    """The page names its files from where it is, so its address ends with a slash."""
    async with client_of(asgi_app({"essay": Essay()})) as client:
        response = await client.get("/my flows", root_path="/my flows")
        assert response.status == 307
        assert response.headers["location"] == "my%20flows/"
        assert (await client.get("/my flows/", root_path="/my flows")).status == 200


async def test_the_picture_of_a_workflow_names_its_children():
    """The picture has no style of its own; each part of it can be found by the workflow and the step."""
    async with client_of(asgi_app({"failing": Failing()})) as client:
        data = (await client.get("/workflows/failing/picture")).json
        assert data["svg"].startswith("<svg")
        assert "<style" not in data["svg"]
        assert data["flows"] == {"0": "Failing", "1": "Inner"}
        assert 'data-at="1.' in data["svg"]
        unknown = await client.get("/workflows/other/picture")
        assert unknown.status == 404
        assert "expected one of failing" in unknown.json["detail"]


async def test_the_records_of_a_run_have_no_text_of_an_exception():
    """The timeline and the counts of the steps, of children too; exceptions are their classes alone."""
    async with client_of(asgi_app({"failing": Failing()})) as client:
        run = (await client.post("/workflows/failing/run", {})).json
        response = await client.get(f"/handlers/{run['handler_id']}/timeline")
        data = response.json
        assert data["steps"]["Failing"]["work"]["failed"] == 1
        assert data["steps"]["Inner"]["go"]["completed"] == 1
        assert [one["workflow"] for one in data["timeline"]["runs"]] == ["Failing", "Inner"]
        assert "LookupError" in response.text
        assert SECRET not in response.text


async def test_a_store_tells_what_happened_at_an_earlier_server(tmp_path):
    """The timeline of a run that another process has run; it has no text of an exception either."""
    store = f"sqlite:///{tmp_path / 'runs.db'}"
    async with client_of(asgi_app({"failing": Failing()}, run_store=store)) as client:
        run_id = (await client.post("/workflows/failing/run", {})).json["handler_id"]
    async with client_of(asgi_app({"failing": Failing()}, run_store=store)) as client:
        response = await client.get(f"/handlers/{run_id}/timeline")
        data = response.json
        assert data["steps"]["Failing"]["work"]["failed"] == 1
        assert data["is_part"] is False
        assert "LookupError" in data["timeline"]["texts"]
        assert SECRET not in response.text
        told = (await client.get(f"/handlers/{run_id}")).json
        assert told["error"] == "LookupError in the step work"


async def test_a_list_that_has_not_changed_is_not_sent_again():
    """A page asks for the list of runs again and again."""
    async with client_of(asgi_app({"essay": Essay()})) as client:
        first = await client.get("/handlers")
        known = {"if-none-match": first.headers["etag"]}
        again = await client.get("/handlers", headers=known)
        assert (again.status, again.body) == (304, b"")
        await client.post("/workflows/essay/run", {"start_event": {"topic": "a"}})
        changed = await client.get("/handlers", headers=known)
        assert changed.status == 200
        assert len(changed.json["handlers"]) == 1
