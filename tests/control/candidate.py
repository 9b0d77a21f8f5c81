"""A candidate in a process of its own, to be killed: `python -m tests.control.candidate KUBECONFIG NAMESPACE`."""

import asyncio
import sys

from romancy.base.settings import ControlSettings
from romancy.control.kube import Kube
from romancy.control.leader import Elector


async def main(kubeconfig: str, namespace: str) -> None:
    async def body() -> None:
        print("leads", flush=True)
        await asyncio.Event().wait()

    async with Kube.open(ControlSettings(kubeconfig=kubeconfig)) as kube:
        elector = Elector(
            kube,
            namespace=namespace,
            name="romancy",
            identity="doomed",
            lease_seconds=2,
            renew_deadline_seconds=1.4,
            retry_seconds=0.2,
        )
        await elector.run(body, asyncio.Event())


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
