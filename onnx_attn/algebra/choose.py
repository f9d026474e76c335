"""Which identities a site's packing takes, and why not the others."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from onnx_attn.algebra.constant_channel import ConstantChannel, read_constant_channel
from onnx_attn.algebra.key_bias import key_bias_stays
from onnx_attn.algebra.value_bias import OutProjection, read_value_bias
from onnx_attn.forms.narrow_weights import is_narrow
from onnx_attn.forms.owning import is_own
from onnx_attn.forms.packing import Group, Member, Packing
from onnx_attn.graph.view import GraphView
from onnx_attn.site import AttentionSite
from onnx_attn.views.linear import rows_vary, weight_array

CONSTANT_CHANNEL, KEY_BIAS, VALUE_BIAS, SCALE = IDENTITIES = ("constant-channel", "key-bias", "value-bias", "scale")
QUERY, KEY, VALUE = range(3)
VARIES = "sizes vary, where a projection without biases takes as many kernels as one with them"


@dataclass(frozen=True)
class Algebra:
    """The identities that are applied to one site.

    scale: folded into Q's weights and bias. key_bias: dropped. value_bias: moved behind this layer.
    constants: the LayerNorm that carries a constant for each group's biases, by the group's first role.
    left: why an identity that has something to do is not applied.
    """

    scale: bool = False
    key_bias: bool = False
    value_bias: OutProjection | None = None
    constants: Mapping[int, ConstantChannel] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        applied = (bool(self.constants), self.key_bias, self.value_bias is not None, self.scale)
        return tuple(name for name, is_applied in zip(IDENTITIES, applied, strict=True) if is_applied)

    def constant(self, group: Group) -> ConstantChannel | None:
        return self.constants.get(group.roles[0])

    def takes_bias(self, role: int) -> bool:
        """Whether this operand's bias is dropped, or moved behind the out-projection."""
        return (role == KEY and self.key_bias) or (role == VALUE and self.value_bias is not None)

    def changes(self, group: Group) -> bool:
        """Whether the group's weights or biases become other numbers."""
        roles = group.roles
        return (
            group.roles[0] in self.constants
            or (self.scale and QUERY in roles)
            or (self.key_bias and KEY in roles)
            or (self.value_bias is not None and VALUE in roles)
        )


NOTHING = Algebra()
QUANTISED = "weights or what is made of them are quantised"


def choose_algebra(
    view: GraphView, site: AttentionSite, packing: Packing, allowed: Collection[str] = IDENTITIES
) -> Algebra:
    """All identities that hold and have something to do.

    K's and V's biases go where they can, even if a LayerNorm could carry them: in half precision a bias that is rounded
    anew is the same error in every row of V, which the average over keys makes no smaller.
    """
    left: dict[str, str] = {}
    if is_quantised(view, site, packing):
        return Algebra(left=dict.fromkeys(allowed, QUANTISED))
    own = [g for g in packing.groups if is_own(view, site, [(m.role, m.layer) for m in g.members])]
    constants: dict[int, ConstantChannel] = {}
    for group in own if CONSTANT_CHANNEL in allowed else ():
        if any(is_biased(view, member) for member in group.members):
            found = VARIES if rows_vary(view, group.members[0].layer) else read_constant_channel(view, group)
            if isinstance(found, str):
                left[CONSTANT_CHANNEL] = found
            else:
                constants[group.roles[0]] = found
    biased = {member.role: member for group in own for member in group.members if is_biased(view, member)}
    key_bias = KEY in biased and KEY_BIAS in allowed
    if key_bias and (reason := key_bias_stays(view, site)) is not None:
        left[KEY_BIAS], key_bias = reason, False
    value_bias: OutProjection | None = None
    if VALUE in biased and VALUE_BIAS in allowed:
        moved = read_value_bias(view, site, biased[VALUE].projected)
        if isinstance(moved, str):
            left[VALUE_BIAS] = moved
        else:
            value_bias = moved
    scale = SCALE in allowed and site.scale != 1.0 and {QUERY, KEY} <= packing.members.keys()
    if scale and not any(QUERY in group.roles for group in own):
        left[SCALE] = "Q's projection is read elsewhere too"
        scale = False
    return Algebra(scale, key_bias, value_bias, constants, left)


def is_quantised(view: GraphView, site: AttentionSite, packing: Packing) -> bool:
    """Whether a quantisation step lies between the packed projections and P·V, or their weights are quantised: a bias or a
    factor in front of a rounding is another than one behind it, and rounded rows of P do not sum to 1."""
    operands = any(operand.quantizer for operand in site.operands)
    layers = any(member.layer.rounded for group in packing.groups for member in group.members)
    return operands or layers or bool(site.quantizers) or any(is_narrow(view, group) for group in packing.groups)


def is_biased(view: GraphView, member: Member) -> bool:
    """Whether an operand's layer adds anything to it: a packed bias has zeros where an operand has none."""
    bias, columns = member.layer.bias, member.heads.columns.reshape(-1)
    if bias is None or member.layer.beta == 0.0:
        return False
    numbers = weight_array(view, bias)
    return numbers is None or bool(numbers.reshape(-1)[columns].any())
