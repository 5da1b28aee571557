"""A decoder layer with experts on any device, one prompt and three steps: python decoder_layer.py [DEVICE]

Weights and cache stay on the device; a step only enqueues, and the result is waited for. Norms are left out, weights are random.
"""

import sys

import numpy as np

import ropeway

HEADS, KV_HEADS, HEAD_DIM = 8, 2, 64
HIDDEN, INTER, EXPERTS, TOPK, CONTEXT = 256, 128, 8, 2, 64


class Layer:
    def __init__(self, session: ropeway.Session) -> None:
        rng = np.random.default_rng(1)

        def weight(*shape: int) -> ropeway.Tensor:
            return session.tensor((rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32))

        self.session = session
        self.to_q = weight(HEADS * HEAD_DIM, HIDDEN)
        self.to_kv = weight(2 * KV_HEADS * HEAD_DIM, HIDDEN)
        self.to_out = weight(HIDDEN, HEADS * HEAD_DIM)
        self.router = weight(EXPERTS, HIDDEN)
        self.gate_up, self.down = weight(EXPERTS, 2 * INTER, HIDDEN), weight(EXPERTS, HIDDEN, INTER)
        # The key and the value of a token side by side, as one product leaves them.
        self.cache = session.empty((1, CONTEXT, 2, KV_HEADS, HEAD_DIM))
        self.length = 0

    def step(self, x: ropeway.Tensor) -> ropeway.Tensor:
        """x [tokens, hidden] after the tokens before it."""
        tokens, begin = x.shape[0], self.length
        self.length += tokens
        new = self.cache[0, begin : self.length].reshape(tokens, 2 * KV_HEADS * HEAD_DIM)
        ropeway.gemm(x, self.to_kv.mT, out=new)
        q = ropeway.gemm(x, self.to_q.mT).reshape(1, tokens, HEADS, HEAD_DIM)
        context = self.session.empty((1, tokens, HEADS, HEAD_DIM))

        # [batch, heads, tokens, d] are windows into what lies there as [batch, tokens, ..., heads, d].
        keys, values = (self.cache[:, : self.length, which].transpose(0, 2, 1, 3) for which in (0, 1))
        ropeway.attention(q.transpose(0, 2, 1, 3), keys, values, causal=True, out=context.transpose(0, 2, 1, 3))
        h = ropeway.gemm(context.reshape(tokens, HEADS * HEAD_DIM), self.to_out.mT, c=x)

        logits = ropeway.gemm(h, self.router.mT)
        return ropeway.moe_ffn(h, logits, self.gate_up, self.down, topk=TOPK, renormalize=True).y


def main(device: str) -> None:
    session = ropeway.Session(device)
    print(f"{device}: {session.info.name} ({session.info.execution})")
    for missing in ropeway.devices().missing:
        print(f"not here: {missing.backend}: {missing.remedy}")

    layer = Layer(session)
    prompt = np.random.default_rng(2).standard_normal((10, HIDDEN)).astype(np.float32)
    y = layer.step(session.tensor(prompt))[-1:]
    for _ in range(3):
        y = layer.step(y)
    print(f"{layer.length} tokens, the last begins {y.numpy()[0, :4]}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "cpu")
