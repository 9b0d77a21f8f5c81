"""docs/transactions.md: its code is run as it stands, on PostgreSQL."""

import importlib.util
import re
import sys
from pathlib import Path

import asyncpg

from romancy import App
from romancy.base.settings import DatabaseSettings, WorkerSettings

PAGE = Path(__file__).parents[2] / "docs/transactions.md"


async def test_the_code_of_the_page_books_once(database: DatabaseSettings, tmp_path: Path) -> None:
    [code] = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "bookings.py").write_text(code)
    spec = importlib.util.spec_from_file_location("bookings", tmp_path / "bookings.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["bookings"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    connection = await asyncpg.connect(database.url.get_secret_value())
    await connection.execute("create table public.booking (number integer generated always as identity, order_id text)")
    try:
        async with App(database, [module.order_one], worker=WorkerSettings(name="w")) as app:
            handle = await app.start(module.order_one.options(id="o1"), "o1")
            assert await handle.result(timeout=10) == 1
            assert await connection.fetchval("select order_id from public.booking") == "o1"
    finally:
        await connection.execute("drop table public.booking")
        await connection.close()
