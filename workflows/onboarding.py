"""Onboarding: create a profile, send a welcome mail. The smallest workflow that has to survive a crash."""

import asyncio
from typing import TypedDict

from romancy import activity, workflow


class Onboarded(TypedDict):
    """What the run returns."""

    status: str
    user_id: str
    email_sent: bool


@activity
async def create_user_profile(user_id: str, email: str) -> str:
    """Create the profile in the user service; its id."""
    await asyncio.sleep(0.1)  # stands for the call of a service
    return f"profile-{user_id}"


@activity
async def send_welcome_email(email: str) -> bool:
    """Hand the mail to the mail service."""
    await asyncio.sleep(0.1)
    return True


@workflow
async def user_onboarding(user_id: str, email: str) -> Onboarded:
    """Each finished activity is saved: a crash between the two does not create a second profile."""
    await create_user_profile(user_id, email)
    sent = await send_welcome_email(email)
    return Onboarded(status="onboarded", user_id=user_id, email_sent=sent)
