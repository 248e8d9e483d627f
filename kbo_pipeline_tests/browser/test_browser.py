"""What an operator does in the web UI, done by clicks in a browser: `make test-browser`.

One `kbo start` serves all of it. The pictures that the docs show are taken here.
"""

import re
from contextlib import suppress

import dagster as dg
import pytest
from playwright.sync_api import Browser, Locator, expect

from kbo_pipeline.commands.demo import damage
from kbo_pipeline.core.settings import load_settings
from kbo_pipeline.core.tables import ALL_TABLES, TABLES
from kbo_pipeline.operate.markers import pause, resume
from kbo_pipeline.sample.extracts import Sample
from kbo_pipeline_tests.support.browser import (
    COLUMNS,
    Screen,
    opened,
    terminal_picture,
)
from kbo_pipeline_tests.support.core import current_rows, sorted_rows
from kbo_pipeline_tests.support.pipeline import BAD, Pipeline, fetch, materializations
from kbo_pipeline_tests.support.processes import wait_until
from kbo_pipeline_tests.support.server import Server

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]

SAMPLE = Sample(enterprises=1500, seed=11, change_shares=(0.15,))
FULL, UPDATE = "0140-full", "0141-update"
MAX_BATCHES = 50
SEEN = 8
"""Batches that are done when the UI is looked at."""
BAD_KEYS = [f"{UPDATE}-{number:04d}" for number in BAD]
TABLE_NAMES = [table.name for table in TABLES]
RED, GREEN = "red", "green"
BATCH_LINE = re.compile(r"^0140-full-\d{4}, \d+ of \d+ \(\d+ %\): .* opened")

# A company with one establishment unit that the Update moves: its page has something of everything.
MOVED = """
SELECT min(enterprise_number) FROM current.enterprise_profile
WHERE type_of_enterprise = '2' AND establishments = 1 AND main_nace_code IS NOT NULL
AND enterprise_number IN (SELECT entity_number FROM address_changes(141) WHERE _change = 'removed')
"""


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A pipeline with a Full and an Update in its downloads directory."""
    # About 12 batches for the Update: the UI has only the rows of a list in its page that fit in.
    settings = {"KBO_BATCH_ROWS": "300", "KBO_MAX_BATCHES": str(MAX_BATCHES)}
    pipeline = Pipeline(tmp_path_factory.mktemp("data"), settings)
    SAMPLE.write_full(pipeline.directory / "downloads", 140)
    SAMPLE.write_update(pipeline.directory / "downloads", 141)
    return pipeline


def test_an_extract_materialized_in_the_ui_shows_its_progress_and_is_published(
    browser: Browser, server: Server, pipeline: Pipeline
) -> None:
    settings = load_settings(pipeline.environment)
    with opened(browser, server.address, "import") as screen:
        materialize_extract(screen, FULL)
        with pipeline.instance() as instance:
            wait_until(lambda: len(materializations(instance, "branch")) >= SEEN, "batches")
        assert pause(settings)  # what is to be seen stays for as long as looking at it takes
        try:
            open_newest_run(screen, "apply_batches")
            screen.page.get_by_placeholder("Filter…").fill("closed,")  # in no event of a table
            expect(screen.page.get_by_text("ASSET_MATERIALIZATION")).to_have_count(0)
            expect(screen.page.get_by_text(BATCH_LINE).nth(SEEN - 1)).to_be_visible()
            screen.picture("run", shown=True)
            open_graph(screen)
            for name in TABLE_NAMES:
                expect(share(screen, name)).to_have_text(re.compile(r"^[1-9]\d?% filled$"))
            expect(screen.page.get_by_text("fetching statuses")).to_have_count(0)
            screen.picture("asset-graph", shown=True)
        finally:
            assert resume(settings)
        for name in TABLE_NAMES:
            expect(share(screen, name)).to_have_text("100% filled")
        server.wait_for_run("publish_extract", "SUCCESS")
        expand(screen, "publish")
        for name in ("code", "published_extract", "change_report"):
            expect(share(screen, name)).to_have_text("100% filled")
        screen.picture("asset-graph-published")
    check_register(pipeline, 140)


def test_exactly_the_failed_batches_are_red_and_run_again_by_clicks(
    browser: Browser, server: Server, pipeline: Pipeline
) -> None:
    pipeline.kbo("import", *(pipeline.directory / "downloads").glob("*_0140_*"))
    with opened(browser, server.address, "failed-batches") as screen:
        switch(screen, server, "apply_when_staged", on=False)
        materialize_extract(screen, UPDATE)
        staging_file = pipeline.directory / "staging" / f"{UPDATE}.duckdb"
        wait_until(lambda: server.runs("stage_extract")[-1]["status"] == "SUCCESS", "staged")
        sound = damage(staging_file, BAD)
        switch(screen, server, "apply_when_staged", on=True)
        server.wait_for_run("apply_batches", "FAILURE")

        open_graph(screen)
        for name in TABLE_NAMES:
            expect(share(screen, name)).to_have_text(re.compile(r"\(2 failed\)$"))
        with pipeline.instance() as instance:
            batches = instance.get_dynamic_partitions("kbo_batches")
        of_update = [key for key in batches if key.startswith(UPDATE)]
        for name in reversed(TABLE_NAMES):
            open_partitions(screen, name)
            expect(count(screen, "Failed", 2)).to_be_visible()
            expect(count(screen, "Materialized", len(batches) - 2)).to_be_visible()
            expect(count(screen, "Missing", 0)).to_be_visible()
            assert colors(screen, of_update) == {
                key: RED if key in BAD_KEYS else GREEN for key in of_update
            }
        dot(screen, BAD_KEYS[0]).click()
        expect(screen.page.get_by_text("did not materialize this asset")).to_be_visible()
        screen.picture("failed-batches", shown=True)
        command = ["status", UPDATE]
        terminal_picture("status", f"kbo {' '.join(command)}", in_color(pipeline, *command))

        sound.replace(staging_file)
        materialize_failed(screen)
        server.wait_for_run("publish_extract", "SUCCESS", count=2)
        for name in TABLE_NAMES:
            open_partitions(screen, name)
            expect(count(screen, "Failed", 0)).to_be_visible()
            expect(count(screen, "Materialized", len(batches))).to_be_visible()
            assert set(colors(screen, of_update).values()) == {GREEN}
        screen.picture("mended-batches")
        wait_until(lambda: newest_report(pipeline) == UPDATE, f"the report on {UPDATE}")
        open_partitions(screen, "change_report")
        dot(screen, UPDATE).click()
        expect(screen.page.get_by_text("rows_changed", exact=True).first).to_be_visible()
        screen.picture("change-report")
    check_register(pipeline, 141)
    with pipeline.read() as reader:
        number = fetch(reader, MOVED)
    page = in_color(pipeline, "show", number)
    assert number in page
    terminal_picture("show", f"kbo show {number}", page)


@pytest.mark.parametrize("name", ["inbox_sensor", "kbo_extract_sensor"])
def test_a_sensor_is_stopped_and_started_by_a_click(
    browser: Browser, server: Server, name: str
) -> None:
    with opened(browser, server.address, name) as screen:
        switch(screen, server, name, on=False)
        screen.picture(f"{name}-stopped")
        switch(screen, server, name, on=True)
        server.wait_for_ticks(1, name)


def materialize_extract(screen: Screen, extract: str) -> None:
    """Makes an extract a partition, and stages it: the rest goes by itself."""
    page = screen.page
    screen.open("Jobs")
    page.get_by_role("link", name="stage_extract").first.click()
    page.get_by_role("button", name="Materialize all").click()
    page.get_by_text("Add a partition").click()
    page.get_by_placeholder("name", exact=True).fill(extract)
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("Partition name")).to_have_count(0)
    # The UI chooses the new partition by itself, but forgets that now and then.
    choose(screen, "Missing", "1 partition")
    screen.picture("materialize", shown=extract == FULL)
    page.get_by_role("button", name="Launch 1 run").click()
    expect(page.get_by_text("Launched run")).to_be_visible()


def choose(screen: Screen, status: str, found: str) -> None:
    """Chooses partitions by their status, which the dialog knows only a while after it opened."""

    def are_chosen() -> bool:
        for name in ("All", status):
            screen.page.get_by_role("button", name=name, exact=True).click()
        return screen.page.get_by_text(found, exact=True).is_visible()

    wait_until(are_chosen, f"{found}: {status}")


def open_newest_run(screen: Screen, job: str) -> None:
    screen.open("Jobs")
    screen.page.get_by_role("link", name=job).first.click()
    screen.page.get_by_role("tab", name="Runs").click()
    screen.page.get_by_role("link", name=re.compile(r"\b[0-9a-f]{8}\b")).first.click()


def open_graph(screen: Screen) -> None:
    """The asset graph with room for the tables of the register, and what matters of each."""
    page = screen.page
    screen.open("Lineage")
    page.get_by_text("Hide navigation").click()
    screen.icon("panel_show_right").click()
    screen.icon("config").click()
    for facet in ("Sync status tags", "Asset checks", "Latest event", "Kind tag", "Automation"):
        page.locator("label").filter(has_text=facet).click()
    page.get_by_role("button", name="Save").click()
    expand(screen, "register")


def expand(screen: Screen, group: str) -> None:
    screen.page.get_by_text(group, exact=True).click()
    screen.page.mouse.dblclick(100, 300)  # a place without anything: the whole graph is shown


def share(screen: Screen, asset: str) -> Locator:
    """The share of its partitions that the graph shows on an asset; a link to all of them."""
    return screen.page.locator(f'a[href*="/assets/{asset}?"]').filter(has_text="filled")


def open_partitions(screen: Screen, asset: str) -> None:
    """The partitions of an asset; from the graph by a click on the share."""
    if share(screen, asset).count():
        share(screen, asset).click()
    else:
        screen.page.goto(re.sub(r"/assets/\w+", f"/assets/{asset}", screen.page.url))
    screen.page.get_by_placeholder("Filter by name…").fill(UPDATE)


def count(screen: Screen, status: str, number: int) -> Locator:
    return screen.page.get_by_text(f"{status} ({number})", exact=True)


def dot(screen: Screen, key: str) -> Locator:
    """What tells the status of a partition in the list; its name may be a heading too."""
    return screen.page.locator(f'[data-tooltip="{key}"] + div').first


def colors(screen: Screen, keys: list[str]) -> dict[str, str]:
    """Whether the dot beside each of these partitions is red or green."""
    found = {}
    for key in keys:
        color = dot(screen, key).evaluate("dot => getComputedStyle(dot).backgroundColor")
        red, green, _ = map(int, re.findall(r"\d+", color)[:3])
        found[key] = RED if red > green else GREEN
    return found


def materialize_failed(screen: Screen) -> None:
    """On the page of a table: what README says of a failed batch."""
    page = screen.page
    page.get_by_role("button", name="Materialize").first.click()
    expect(page.get_by_text("Additional assets will be materialized")).to_be_visible()
    page.get_by_role("button", name="Confirm").click()
    choose(screen, "Failed", "2 partitions")
    screen.picture("materialize-failed", shown=True)
    page.get_by_role("button", name="Launch backfill").click()
    expect(page.get_by_text("Created backfill")).to_be_visible()


def switch(screen: Screen, server: Server, sensor: str, *, on: bool) -> None:
    """Starts or stops a sensor, which must be as it is not to be."""
    screen.open("Automation")
    screen.page.get_by_role("link", name=sensor).first.click()
    box = screen.page.get_by_role("checkbox")
    expect(box).to_be_checked(checked=not on)

    wanted = "RUNNING" if on else "STOPPED"

    def is_switched() -> bool:  # by a click, which a tick that is under way may undo
        if box.is_checked() != on:
            screen.page.locator("label").filter(has=box).click()
        with suppress(AssertionError):
            expect(box).to_be_checked(checked=on, timeout=15_000)
        return server.sensor_status(sensor) == wanted

    wait_until(is_switched, f"{sensor} is {wanted}")


def newest_report(pipeline: Pipeline) -> str | None:
    """The extract that the change report was made of last."""
    with pipeline.instance() as instance:
        event = instance.get_latest_materialization_event(dg.AssetKey("change_report"))
    made = event.asset_materialization if event else None
    return made.partition if made else None


def in_color(pipeline: Pipeline, *arguments: str) -> str:
    """What a command writes to a terminal."""
    settings = {"FORCE_COLOR": "1", "COLUMNS": str(COLUMNS), "TERM": "xterm-256color"}
    return pipeline.run("-m", "kbo_pipeline.cli", *arguments, settings=settings).stdout


def check_register(pipeline: Pipeline, number: int) -> None:
    """All tables are what the generator says of this extract."""
    wait_until(lambda: pipeline.is_published, "the published register")
    with pipeline.read() as reader:
        newest = "SELECT max(extract_number) FROM import_jobs WHERE status = 'completed'"
        assert fetch(reader, newest) == number
        for table in ALL_TABLES:
            assert current_rows(reader, table) == sorted_rows(SAMPLE.rows(table.name, number))
