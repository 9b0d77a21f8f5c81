"""An order whose payment is declined: what was reserved and booked before is taken back, last-in first-out."""

from pydantic import BaseModel

from romancy import NO_RETRY, RetryPolicy, activity, workflow


class Order(BaseModel):
    id: str
    sku: str
    amount: int
    card: str


class Reservation(BaseModel):
    order: str
    sku: str


class Booking(BaseModel):
    order: str
    parcel: str


class Receipt(BaseModel):
    order: str
    parcel: str
    payment: str


class PaymentDeclinedError(Exception):
    """The bank has said no: trying again would not change that."""


@activity
async def reserve_stock(order: Order) -> Reservation:
    """Put the goods aside."""
    return Reservation(order=order.id, sku=order.sku)


@reserve_stock.compensate(retry=RetryPolicy(max_attempts=0))
async def release_stock(reservation: Reservation) -> None:
    """Give them back; tried until it works."""


@activity
async def book_parcel(order: Order) -> Booking:
    """Book the transport."""
    return Booking(order=order.id, parcel=f"parcel-{order.id}")


@book_parcel.compensate
async def cancel_parcel(booking: Booking) -> None:
    """Cancel it."""


@activity(retry=NO_RETRY, timeout=30)
async def charge_card(order: Order) -> str:
    """Take the money. `activity.info().idempotency_key` is what a payment service wants to know."""
    if order.card.startswith("declined"):
        raise PaymentDeclinedError(f"card of order {order.id} was declined")
    return f"payment-{activity.info().idempotency_key}"


@workflow
async def order_saga(order: Order) -> Receipt:
    """Plain Python: an exception that nobody catches fails the run, and then compensations run."""
    await reserve_stock(order)
    booking = await book_parcel(order)
    payment = await charge_card(order)
    return Receipt(order=order.id, parcel=booking.parcel, payment=payment)
