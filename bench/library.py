"""The Python library as a consumer: takes and acks so many messages, and prints one line of JSON.

library.py TARGET COUNT
"""

import asyncio
import json
import sys
import time

import ackstream


async def main(target: str, count: int) -> None:
    async with ackstream.connect(target) as client:
        consumer = client.consume("demo", "demo", max_outstanding_messages=10_000, max_batch_messages=256)
        taken, began = 0, time.perf_counter()
        async for delivery in consumer:
            delivery.ack()
            taken += 1
            if taken == count:
                break
        await consumer.stop()  # once the server has read the last ack
        print(json.dumps({"acked": taken, "seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
