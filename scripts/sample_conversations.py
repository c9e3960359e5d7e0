"""Holds five conversations with a running server and prints them as Markdown, uncut.

    jaxinfer serve &
    python scripts/sample_conversations.py --server localhost:50051

What the user says is fixed; the answers are the model's, with its own sampling defaults and a fixed seed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import grpc

from protos.jaxinfer.v1 import inference_pb2 as pb
from protos.jaxinfer.v1 import inference_pb2_grpc as pb_grpc

CONVERSATIONS: tuple[tuple[str, ...], ...] = (
    ("Hello!", "Who are you?", "What is 347 + 586?", "And what is 12 x 7?", "Thank you!"),
    ("Tell me a story about a fox named Pip.",),
    (
        "Marta Novak is 34 years old and lives in Lisbon.\nExtract name, age and city as JSON.",
        "| name | color | room |\n| Elias | red | 204 |\n| Mei | green | 118 |\n| Otto | blue | 377 |\n"
        "What is the room of Mei?",
    ),
    (
        "Remember: The code of the green lantern is 731.\nKeep in mind: The room of Hugo Berg is 402.\n"
        "What is the room of Hugo Berg?",
        "How many minutes are 3 hours and 25 minutes?",
        "Do you remember the code of the green lantern?",
    ),
    (
        "Say this in Chinese: The clever fox sleeps under the tree.",
        "Anna is taller than Ben. Carla is shorter than Ben. Who is the shortest?",
        "Sort these words by the alphabet.\nriver, apple, moon, castle",
    ),
)


def answer(stub: pb_grpc.InferenceStub, messages: list[pb.ChatMessage]) -> str:
    """The model's next message."""
    request = pb.GenerateRequest(chat=pb.Chat(messages=messages), sampling=pb.SamplingParams(max_tokens=400, seed=1))
    return "".join(reply.delta.text for reply in stub.Generate(request, timeout=120))


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the conversations; returns 1 if the server cannot be reached or refuses."""
    parser = argparse.ArgumentParser(description="Hold five conversations with a server.")
    parser.add_argument("--server", default="localhost:50051", metavar="HOST:PORT")
    arguments = parser.parse_args(argv)
    with grpc.insecure_channel(arguments.server) as channel:
        stub = pb_grpc.InferenceStub(channel)
        try:
            for number, turns in enumerate(CONVERSATIONS, 1):
                print(f"**{number}.**\n")
                messages: list[pb.ChatMessage] = []
                for text in turns:
                    messages.append(pb.ChatMessage(role="user", content=text))
                    reply = answer(stub, messages)
                    messages.append(pb.ChatMessage(role="assistant", content=reply))
                    for who, said in (("user", text), ("demo", reply)):
                        print("\n".join(f"> {line}" for line in f"**{who}:** {said}".split("\n")) + "\n>")
                print()
        except grpc.RpcError as error:
            print(f"sample_conversations: {arguments.server}: {error.details()}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
