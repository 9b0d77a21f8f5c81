"""The examples in workflows/ do what they say, with the input of their manifests."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from romancy import App
from romancy.base.settings import DatabaseSettings, WorkerSettings
from romancy.model.run import Phase, Reason
from workflows import onboarding, order_saga, price_check

FOLDER = Path(__file__).parents[2] / "workflows"
QUICK = WorkerSettings(name="w", park_after_seconds=0.1, poll_seconds=1)


def spec_of(name: str) -> dict[str, Any]:
    """The spec of a manifest."""
    spec: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())["spec"]
    return spec


async def test_onboarding(database: DatabaseSettings) -> None:
    spec = spec_of("onboarding")
    async with App(database, [onboarding.user_onboarding], worker=QUICK) as app:
        handle = await app.start(onboarding.user_onboarding, **spec["input"])

        assert await handle.result() == {"status": "onboarded", "user_id": "user-1", "email_sent": True}
    assert spec["workflow"] == onboarding.user_onboarding.name


async def test_the_order_saga_takes_back_what_was_done(database: DatabaseSettings) -> None:
    spec = spec_of("order_saga")
    async with App(database, [order_saga.order_saga], worker=QUICK) as app:
        handle = await app.start(order_saga.order_saga, order_saga.Order(**spec["input"]))
        with pytest.raises(order_saga.PaymentDeclinedError, match="order 1 was declined"):
            await handle.result()
        run = await handle.info()
        history = await app.store.read_history(run.id)

    assert (run.phase, run.reason) == (Phase.FAILED, Reason.WORKFLOW_FAILED)
    assert [entry.name for entry in history] == [
        "reserve_stock",
        "book_parcel",
        "charge_card",
        "cancel_parcel",
        "release_stock",
    ]


async def test_the_order_saga_with_a_good_card(database: DatabaseSettings) -> None:
    order = order_saga.Order(**{**spec_of("order_saga")["input"], "card": "good"})
    async with App(database, [order_saga.order_saga], worker=QUICK) as app:
        handle = await app.start(order_saga.order_saga, order)

        receipt = await handle.result()
    assert receipt == order_saga.Receipt(order="1", parcel="parcel-1", payment=f"payment-{handle.id}/3")


async def test_the_price_check_leaves_out_who_does_not_answer(database: DatabaseSettings) -> None:
    spec = spec_of("price_check")
    async with App(database, [price_check.price_check], worker=QUICK) as app:
        handle = await app.start(price_check.price_check, **{**spec["input"], "patience": 0.5, "pause": 0.3})

        assert await handle.result() == {"shop": "corner", "price": 66.0, "asked": 4, "answered": 2}
