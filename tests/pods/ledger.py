"""A program that runs in a pod: inserts numbered rows, one commit each, and prints each number that is acknowledged."""

import asyncio
import itertools
import os

import asyncpg

LOST = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


async def keep() -> None:
    """For ever. It stays with the server that it has reached as long as that one answers, whoever has taken its place."""
    numbers = itertools.count()
    while True:
        try:
            connection = await asyncpg.connect(os.environ["ROMANCY_DATABASE__URL"], timeout=2)
        except LOST:
            await asyncio.sleep(0.1)
            continue
        try:
            while True:
                number = next(numbers)
                await connection.execute("insert into public.ledger values ($1)", number, timeout=2)
                print(number, flush=True)
                await asyncio.sleep(0.01)
        except LOST:
            connection.terminate()


if __name__ == "__main__":
    asyncio.run(keep())
