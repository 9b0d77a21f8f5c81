"""Ask several shops at once, each for a limited time; wait a while, durably; and take the best of the answers."""

import asyncio
from typing import TypedDict

from romancy import NO_RETRY, WorkflowContext, activity, workflow


class Best(TypedDict):
    """What the run returns."""

    shop: str
    price: float
    asked: int
    answered: int


@activity(retry=NO_RETRY)
async def ask_shop(shop: str, sku: str) -> float:
    """The price in one shop. One that is called `slow` takes its time."""
    if shop.startswith("slow"):
        await asyncio.sleep(3600)
    if shop.startswith("broken"):
        raise ConnectionError(f"{shop} does not answer")
    return float(len(shop) * 10 + len(sku))


@workflow
async def price_check(
    ctx: WorkflowContext, sku: str, shops: list[str], patience: float = 2.0, pause: float = 0.5
) -> Best:
    """asyncio as everybody knows it: tasks, a timeout for each, and a sleep that survives crashes."""

    async def price(shop: str) -> tuple[float, str] | None:
        try:
            async with asyncio.timeout(patience):
                return await ask_shop(shop, sku), shop
        except (TimeoutError, ConnectionError) as error:
            ctx.logger.warning("shop_left_out", shop=shop, why=type(error).__name__)
            return None

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(price(shop)) for shop in shops]
    answers = [answer for task in tasks if (answer := task.result()) is not None]
    if not answers:
        raise LookupError(f"no shop has told a price of {sku}")
    await asyncio.sleep(pause)  # a day, in real life
    best, shop = min(answers)
    return Best(shop=shop, price=best, asked=len(shops), answered=len(answers))
