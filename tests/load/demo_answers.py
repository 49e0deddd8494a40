"""Right answers a second from the demo model, over HTTP, of a server that runs already.

    python tests/load/demo_answers.py http://127.0.0.1:8000 [--seconds 5]

Every request has a picture of its own and counts only when its answer names the shape drawn.
"""

import argparse
import io
import itertools
import threading
import time

import httpx
from PIL import Image, ImageDraw

COLORS = {"red": (255, 0, 0), "blue": (0, 0, 255), "green": (0, 160, 0)}


def picture(number: int) -> tuple[bytes, str]:
    """A circle, no two alike, and what the model should say of it."""
    name = list(COLORS)[number % len(COLORS)]
    image = Image.new("RGB", (256, 256), "white")
    left, top = 40 + number // 60 % 60, 40 + number % 60
    ImageDraw.Draw(image).ellipse((left, top, left + 130, top + 130), fill=COLORS[name])
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    return encoded.getvalue(), f"a {name} circle"


def measure(url: str, clients: int, seconds: float) -> tuple[float, int]:
    """Right answers a second, and the number of wrong ones."""
    numbers, answers = itertools.count(), []
    end = time.monotonic() + seconds

    def ask() -> None:
        with httpx.Client(base_url=url, timeout=60) as client:
            while time.monotonic() < end:
                encoded, expected = picture(next(numbers))
                question = {"text": "What is in this image?", "top_k": "1"}
                reply = client.post("/v1/chat", data=question, files={"image": encoded})
                answers.append(reply.json()["result"] == expected)

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(answers) / (time.monotonic() - started), answers.count(False)


def main() -> None:
    """Measure at one and at eight clients, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--seconds", type=float, default=5)
    options = parser.parse_args()
    for clients in (1, 8):
        rate, wrong = measure(options.url, clients, options.seconds)
        print(f"{clients} clients: {rate:.1f} right answers/s, {wrong} wrong")


if __name__ == "__main__":
    main()
