"""What the layers of a network are made of."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from jaxinfer.cache_groups import CacheSpec
from jaxinfer.config.errors import require, require_counts
from jaxinfer.config.field_types import check_field_types

RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope"]
Activation = Literal["silu", "gelu", "gelu_tanh", "swiglu_oai", "relu2", "xielu"]
Scoring = Literal["softmax", "sigmoid"]
QkNorm = Literal["none", "head", "whole"]


@dataclass(frozen=True)
class RopeConfig:
    """One rotary embedding. Lengths in tokens, `rotary_dim` in elements of the head (partial rotary: < head_dim).

    Fields beyond `theta` and `rotary_dim` are read only by the kinds that define them (names as in Hugging Face
    `rope_parameters`). `attention_factor` multiplies cos and sin; it is always resolved by the registry, never None.
    `query_scaling`: rotated queries are multiplied by 1 + query_scaling * ln(1 + floor(position / trained length)), so
    that scores stay sharp over long texts (Llama 4's attention temperature; `llama_4_scaling_beta` in Hugging Face).
    """

    kind: RopeKind
    theta: float
    rotary_dim: int
    factor: float = 1.0
    attention_factor: float = 1.0  # for longrope: the one that goes with the factors in use (equal for both)
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    truncate: bool = True  # yarn: round the correction range to whole dimensions
    original_max_position_embeddings: int = 0  # llama3, yarn, longrope, dynamic: the trained length
    short_factor: tuple[float, ...] = ()  # longrope, up to original_max_position_embeddings
    long_factor: tuple[float, ...] = ()  # longrope, beyond it
    query_scaling: float = 0.0  # of any kind that has a trained length; 0: queries are not scaled

    def __post_init__(self) -> None:
        check_field_types(self)
        require(self.theta > 0, f"rope theta is {self.theta}; it must be positive")
        require(
            self.rotary_dim > 0 and self.rotary_dim % 2 == 0,
            f"rotary_dim is {self.rotary_dim}; it must be even and positive",
        )
        require(self.factor > 0, f"rope factor is {self.factor}; it must be positive")
        if self.kind in ("llama3", "yarn", "longrope", "dynamic"):
            require(
                self.original_max_position_embeddings > 0,
                f"rope type {self.kind} needs original_max_position_embeddings > 0",
            )
        require(
            self.query_scaling >= 0 and (self.query_scaling == 0 or self.original_max_position_embeddings > 0),
            f"query_scaling is {self.query_scaling}; it must be 0 or more, and needs original_max_position_embeddings "
            f"> 0, which is {self.original_max_position_embeddings}",
        )
        if self.kind == "longrope":
            for name, factors in (("short_factor", self.short_factor), ("long_factor", self.long_factor)):
                require(
                    len(factors) == self.rotary_dim // 2,
                    f"longrope {name} has {len(factors)} values; rotary_dim / 2 = {self.rotary_dim // 2} are needed",
                )


@dataclass(frozen=True)
class AttentionConfig:
    """Attention over all earlier tokens of a sequence, or over a window of them.

    Attributes:
        num_heads: query heads; each KV head serves as many of them.
        head_dim: elements of a head.
        scale: multiplies q.k, usually head_dim ** -0.5.
        sliding_window: tokens that a query sees, itself included; None: all before it.
        rope: index into `ModelConfig.ropes`; None: no positional rotation (NoPE).
        qk_norm: norm of queries and keys: one for each head with a shared weight, or one over the whole of them.
        qk_norm_after_rope: norm them once they are rotated, and not before.
        soft_cap: scores become cap * tanh(score / cap), after the scale.
        sinks: a learned score for each query head beside those of its keys (gpt-oss), neither scaled nor capped.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    sliding_window: int | None = None
    rope: int | None = 0
    qk_norm: QkNorm = "none"
    qk_norm_after_rope: bool = False
    soft_cap: float | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    sinks: bool = False

    def __post_init__(self) -> None:
        require_counts(self, "num_heads", "num_kv_heads", "head_dim")
        check_field_types(self)
        require(
            self.num_heads % self.num_kv_heads == 0,
            f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}",
        )
        require(self.scale > 0, f"the scale of attention scores is {self.scale}; it must be positive")
        require(
            self.sliding_window is None or self.sliding_window > 0,
            f"sliding_window is {self.sliding_window}; it must be positive",
        )

    @property
    def group_size(self) -> int:
        """Query heads per KV head."""
        return self.num_heads // self.num_kv_heads

    @property
    def cache(self) -> CacheSpec:
        """What the layer keeps of each token."""
        return CacheSpec(self.num_kv_heads, self.head_dim, self.sliding_window)


@dataclass(frozen=True)
class MlpConfig:
    """The MLP: down(activation(gate(x)) * up(x)), or without a gate down(activation(up(x))).

    Attributes:
        intermediate_size: its width, elements.
        activation: relu2 is relu(x)^2; xielu, for MLPs without a gate, has parameters of its own (arXiv:2411.13010).
        bias: of all of its matrices.
        limit: for swiglu_oai, which it needs: gate is at most this, up lies within +-this; None: no limits.
        gated: whether there is a gate.
    """

    intermediate_size: int
    activation: Activation = "silu"
    bias: bool = False
    limit: float | None = None
    gated: bool = True

    def __post_init__(self) -> None:
        require_counts(self, "intermediate_size")
        check_field_types(self)
        require(
            (self.activation == "swiglu_oai") == (self.limit is not None),
            f"activation is {self.activation!r} and limit {self.limit}; swiglu_oai has a limit, others have none",
        )
        require(self.limit is None or self.limit > 0, f"limit is {self.limit}; it must be positive")
        wanted = {"xielu": False, "swiglu_oai": True}.get(self.activation, self.gated)
        require(
            self.gated == wanted,
            f"activation is {self.activation!r} and gated is {self.gated}; it must be {wanted} with this activation",
        )


@dataclass(frozen=True)
class RouterConfig:
    """Which experts a token goes to, and with which weights.

    Attributes:
        experts_per_token: k, how many it goes to.
        scoring: softmax or sigmoid of the router's product makes scores of it.
        scored_first: scores are made over all experts, then the best are taken; else the best products are taken, and
            scores are made over them alone.
        normalize: the scores of the chosen are divided by their sum.
        bias: the router's product has one.
        correction: a learned number for each expert is added to its score while experts are chosen, and not after.
        groups: into how many equal groups of neighbours the experts are divided; experts of the `groups_kept` best
            alone are chosen. A group is as good as the sum of its two best.
        scale: multiplies the weights in the end.
    """

    experts_per_token: int
    scoring: Scoring = "softmax"
    scored_first: bool = True
    normalize: bool = True
    bias: bool = False
    correction: bool = False
    groups: int = 1
    groups_kept: int = 1
    scale: float = 1.0

    def __post_init__(self) -> None:
        require_counts(self, "experts_per_token", "groups", "groups_kept")
        check_field_types(self)
        require(self.groups_kept <= self.groups, f"groups_kept is {self.groups_kept}; it must be at most {self.groups}")
        require(self.scale > 0, f"the scale of experts' weights is {self.scale}; it must be positive")
        plain = self.groups == 1 and not self.correction
        require(self.scored_first or plain, "groups and correction need scores of all experts")


@dataclass(frozen=True)
class MoeConfig:
    """A mixture of experts: the weighted sum of those MLPs that the router chooses for a token.

    Attributes:
        num_experts: all there are.
        expert: what each of them is.
        shared: an MLP that every token goes to, beside the chosen ones; several shared experts are one wide one.
        shared_gate: it is multiplied by the sigmoid of a product of its own.
    """

    num_experts: int
    router: RouterConfig
    expert: MlpConfig
    shared: MlpConfig | None = None
    shared_gate: bool = False

    def __post_init__(self) -> None:
        require_counts(self, "num_experts")
        check_field_types(self)
        router = self.router
        require(
            self.num_experts % router.groups == 0,
            f"num_experts {self.num_experts} is not a multiple of the router's {router.groups} groups",
        )
        of_a_group = self.num_experts // router.groups
        most = of_a_group * router.groups_kept
        require(
            router.experts_per_token <= most,
            f"experts_per_token is {router.experts_per_token}; the router can choose of {most} at most",
        )
        require(router.groups == 1 or of_a_group > 1, "groups of experts must have two at least")
        require(self.shared is not None or not self.shared_gate, "shared_gate needs shared experts")

    @property
    def mlps(self) -> tuple[MlpConfig, ...]:
        """What an expert is, and the shared ones where there are any."""
        return (self.expert,) if self.shared is None else (self.expert, self.shared)


FeedForward = MlpConfig | MoeConfig


@dataclass(frozen=True)
class LinearConfig:
    """One square matrix in place of attention or of an MLP, as pruning leaves it; nothing is kept of a token."""

    bias: bool = False

    def __post_init__(self) -> None:
        check_field_types(self)


@dataclass(frozen=True)
class RankConfig:
    """Which matrices of a layer are two factors, outer (out, rank) times inner (rank, in), and of what rank.

    None: it is one matrix. q, k, v and out are attention's; gate, up and down the MLP's.
    """

    q: int | None = None
    k: int | None = None
    v: int | None = None
    out: int | None = None
    gate: int | None = None
    up: int | None = None
    down: int | None = None

    def __post_init__(self) -> None:
        check_field_types(self)
        require_counts(self, *(name for name, rank in self.given.items()))

    @property
    def given(self) -> dict[str, int]:
        """The ranks that are not None."""
        return {name: rank for name, rank in dataclasses.asdict(self).items() if rank is not None}


WHOLE = RankConfig()


@dataclass(frozen=True)
class LayerConfig:
    """A layer: `mixer` carries information between tokens, `feed_forward` works on each token alone. Either may be
    absent, with its norms."""

    mixer: AttentionConfig | LinearConfig | None
    feed_forward: FeedForward | LinearConfig | None
    ranks: RankConfig = WHOLE

    def __post_init__(self) -> None:
        check_field_types(self)
        possible = ["q", "k", "v", "out"] * isinstance(self.mixer, AttentionConfig)
        if isinstance(self.feed_forward, MlpConfig):
            possible += ["gate"] * self.feed_forward.gated + ["up", "down"]
        wrong = {name: rank for name, rank in self.ranks.given.items() if name not in possible}
        require(not wrong, f"ranks has {wrong}; this layer has the matrices {possible}")

    @property
    def attention(self) -> AttentionConfig | None:
        """The mixer, where that is attention."""
        return self.mixer if isinstance(self.mixer, AttentionConfig) else None

    @property
    def mlp(self) -> MlpConfig | None:
        """What works on each token, where that is an MLP."""
        return self.feed_forward if isinstance(self.feed_forward, MlpConfig) else None
