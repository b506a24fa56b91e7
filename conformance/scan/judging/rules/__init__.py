"""The rules, one a module; this is the only list of them."""

from __future__ import annotations

from conformance.scan.judging.rule import Rule
from conformance.scan.judging.rules import (
    dev101_device_literal,
    dev102_backend_call,
    dev103_device_default,
    dev104_selection,
    dev105_closed_list,
    dev106_two_valued,
    dev107_autocast,
    dev108_double,
    dev109_random,
    dev110_memory,
    dev111_backend_default,
    dev112_pinned,
    dev113_import,
    dev114_load,
    dev115_branch,
    dev116_half,
    dev117_config_device,
    dev118_config_needs,
    dev119_requirement,
    dev120_script_device,
    dev121_container,
)

RULES: tuple[Rule, ...] = (
    dev101_device_literal.RULE,
    dev102_backend_call.RULE,
    dev103_device_default.RULE,
    dev104_selection.RULE,
    dev105_closed_list.RULE,
    dev106_two_valued.RULE,
    dev107_autocast.RULE,
    dev108_double.RULE,
    dev109_random.RULE,
    dev110_memory.RULE,
    dev111_backend_default.RULE,
    dev112_pinned.RULE,
    dev113_import.RULE,
    dev114_load.RULE,
    dev115_branch.RULE,
    dev116_half.RULE,
    dev117_config_device.RULE,
    dev118_config_needs.RULE,
    dev119_requirement.RULE,
    dev120_script_device.RULE,
    dev121_container.RULE,
)
BY_CODE = {rule.code: rule for rule in RULES}
