from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from perplab.errors import PerplabError
from perplab.models.anatomy import anatomy, linear_layers

FUSED = ["gpt2", "gpt_neox", "bloom", "falcon", "falcon-many-keys", "falcon-sequential", "falcon-new"]
TOKENS = torch.randint(1, 97, (2, 12), generator=torch.Generator().manual_seed(1))
HEADS, HEAD_DIM = 4, 8


def forward(model, *modules):
    """The model's output, and (first input, first output) of each of `modules` during that forward pass."""
    seen = {}

    def keep(module, arguments, named, output):
        first = next(iter(arguments or named.values()))
        seen[module] = first.clone(), (output[0] if isinstance(output, tuple) else output).clone()

    handles = [module.register_forward_hook(keep, with_kwargs=True) for module in modules]
    with torch.no_grad():
        output = model(TOKENS, output_hidden_states=True, use_cache=False)
    for handle in handles:
        handle.remove()
    return output, [seen[module] for module in modules]


def role_in_attention(block, role):
    """The projection that holds `role`, and its rows."""
    projections = block.projections
    if role in projections:
        return projections[role], torch.arange(len(projections[role].matrix))
    return projections["qkv"], projections["qkv"].rows[role]


@torch.no_grad()
def zero(projection, rows=slice(None)):
    projection.matrix[..., rows, :] = 0
    if projection.bias is not None:
        projection.bias[rows] = 0


@torch.no_grad()
def scramble(projection, rows):
    noise = torch.Generator().manual_seed(2)
    projection.matrix[rows] = torch.randn(projection.matrix[rows].shape, generator=noise)


def branch_ends(block):
    """What attention reads first and writes last, and the same of the MLP, as modules."""
    if "router" in block.projections:  # experts mix inside the module
        mlp = (block.mlp.module, block.mlp.module)
    else:
        mlp = (block.projections["up"].module, block.projections["down"].module)
    return role_in_attention(block, "query")[0].module, block.projections["attention_output"].module, *mlp


def test_logits_of_the_last_hidden_state_are_the_models_logits(tiny_model, family):
    model = tiny_model(family)
    output, _ = forward(model)
    assert torch.equal(anatomy(model).logits(output.hidden_states[-1]), output.logits)


def test_last_block_leads_to_the_last_hidden_state(tiny_model, family):
    model = tiny_model(family)
    parts = anatomy(model)
    output, [(_, residual_stream)] = forward(model, parts.blocks[-1].module)
    torch.testing.assert_close(parts.last_hidden_state(residual_stream), output.hidden_states[-1])


def test_block_is_the_sum_its_parts_and_norm_roles_describe(tiny_model, family):
    model = tiny_model(family)
    parts = anatomy(model)
    for block in parts.blocks:
        read, wrote, mlp_read, mlp_wrote = branch_ends(block)
        _, seen = forward(model, block.module, read, wrote, mlp_read, mlp_wrote)
        (stream, result), (attention_input, _), (_, attention), (mlp_input, _), (_, mlp) = seen

        def norm(role, hidden, block=block):
            return block.norms[role].module(hidden) if role in block.norms else hidden

        with torch.no_grad():
            torch.testing.assert_close(norm("attention_input", stream), attention_input)
            after = norm("after_attention", stream + norm("attention_output", attention))
            expected_input = norm("mlp_input", stream if parts.residual == "parallel" else after)
            torch.testing.assert_close(expected_input.reshape(mlp_input.shape), mlp_input)
            expected = norm("after_mlp", after + norm("mlp_output", mlp.reshape(stream.shape)))
        torch.testing.assert_close(expected, result)


def test_block_without_its_output_projections_leaves_only_norms_of_the_stream(tiny_model, family):
    model = tiny_model(family)
    parts = anatomy(model)
    for block in parts.blocks:
        zero(block.projections["attention_output"])
        zero(block.projections["down"])
    _, seen = forward(model, *(block.module for block in parts.blocks))
    for block, (stream, result) in zip(parts.blocks, seen, strict=True):
        for role in ("after_attention", "after_mlp"):
            stream = block.norms[role].module(stream) if role in block.norms else stream
        torch.testing.assert_close(result, stream, atol=0, rtol=0)


def test_attention_and_mlp_modules_return_what_their_last_projection_wrote(tiny_model, family):
    model = tiny_model(family)
    block = anatomy(model).blocks[0]
    _, wrote, _, mlp_wrote = branch_ends(block)
    mlp = block.mlp.module if block.mlp else mlp_wrote
    _, [(stream, result), (_, attention), (_, projected), (_, mlp_output), (_, mlp_projected)] = forward(
        model, block.module, block.attention.module, wrote, mlp, mlp_wrote
    )
    if family == "bloom":  # its modules add the residual stream themselves
        torch.testing.assert_close(attention, stream + projected)
        torch.testing.assert_close(mlp_output, result)
    elif family.startswith("falcon") and "sequential" not in family:  # its block adds in place to the MLP's output
        assert torch.equal(attention, projected)
    else:
        assert torch.equal(attention, projected)
        assert torch.equal(mlp_output, mlp_projected)


def test_blocks_are_in_the_order_they_run(tiny_model, family):
    model = tiny_model(family)
    order = []
    for index, block in enumerate(anatomy(model).blocks):
        block.module.register_forward_hook(lambda *_, index=index: order.append(index))
    forward(model)
    assert order == [0, 1]


def test_embedding_parts_make_the_first_hidden_state(tiny_model, family):
    model = tiny_model(family)
    parts = anatomy(model)
    listed = [parts.token_embedding, parts.embedding_projection, parts.position_embedding, parts.embedding_norm]
    present = [part for part in listed if part]
    output, seen = forward(model, *(part.module for part in present))
    outputs = {part.path: made for part, (_, made) in zip(present, seen, strict=True)}
    hidden = outputs[(parts.embedding_projection or parts.token_embedding).path]
    if parts.position_embedding:
        hidden = hidden + outputs[parts.position_embedding.path]
    if parts.embedding_norm:
        hidden = parts.embedding_norm.module(hidden)
    torch.testing.assert_close(hidden.expand_as(output.hidden_states[0]), output.hidden_states[0])


def test_every_linear_layer_has_exactly_one_role(tiny_model, family):
    model = tiny_model(family)
    held = [
        projection.module
        for block in anatomy(model).blocks
        for projection in block.projections.values()
        if isinstance(projection.module, (nn.Linear, Conv1D))
    ]
    assert Counter(held) == Counter(linear_layers(model).values())


def test_every_matrix_of_a_block_is_the_weight_of_exactly_one_projection(tiny_model, family):
    for block in anatomy(tiny_model(family)).blocks:
        matrices = [parameter for parameter in block.module.parameters() if parameter.ndim >= 2]
        weights = [projection.weight for projection in block.projections.values()]
        assert Counter(map(id, weights)) == Counter(map(id, matrices))


def test_linear_layers_leave_out_the_head_and_go_by_full_path(tiny_model, family):
    model = tiny_model(family)
    layers = linear_layers(model)
    assert anatomy(model).head.module not in layers.values()
    assert all(model.get_submodule(path) is module for path, module in layers.items())


def test_paths_lead_to_their_modules(tiny_model, family):
    model = tiny_model(family)
    parts = anatomy(model)
    for block in parts.blocks:
        named = [block, block.attention, *block.norms.values(), *([block.mlp] if block.mlp else [])]
        assert all(model.get_submodule(part.path) is part.module for part in named)
        for projection in block.projections.values():
            path = projection.path if projection.weight_name != "weight" else f"{projection.path}.weight"
            assert model.get_parameter(path) is projection.weight


def test_parts_hold_every_parameter_of_the_model(tiny_model, family):
    model = tiny_model(family)
    parts = anatomy(model)
    optional = (parts.position_embedding, parts.embedding_projection, parts.embedding_norm)
    held = [parts.token_embedding, *optional, parts.final_norm, parts.output_projection, parts.head]
    for block in parts.blocks:
        held += [block.attention, block.mlp, *block.norms.values(), *block.projections.values()]
    counted = {id(p): p.numel() for part in held if part for p in part.module.parameters()}
    assert sum(counted.values()) == model.num_parameters()


def test_head_is_tied_when_changing_the_embedding_changes_it(tiny_model, family):
    model = tiny_model(family)
    parts = anatomy(model)
    before = parts.head.weight.clone()
    with torch.no_grad():
        parts.token_embedding.module.weight.add_(1.0)
    assert parts.tied == (not torch.equal(before, parts.head.weight))


def test_matrix_times_input_is_the_module(tiny_model, family):
    for block in anatomy(tiny_model(family)).blocks:
        for role, projection in block.projections.items():
            if isinstance(projection.module, (nn.Linear, Conv1D)):
                hidden = torch.randn(3, projection.matrix.shape[1], generator=torch.Generator().manual_seed(3))
                expected = projection.module(hidden)
                torch.testing.assert_close(F.linear(hidden, projection.matrix, projection.bias), expected, msg=role)


def test_writing_to_a_matrix_writes_to_the_model(tiny_model, family):
    model = tiny_model(family)
    for block in anatomy(model).blocks:
        for projection in block.projections.values():
            with torch.no_grad():
                projection.matrix.fill_(3.0)
            assert bool((projection.weight == 3.0).all())


def test_attention_without_values_writes_only_its_bias(tiny_model, family):
    model = tiny_model(family)
    block = anatomy(model).blocks[0]
    zero(*role_in_attention(block, "value"))
    output = block.projections["attention_output"]
    _, [(_, wrote)] = forward(model, output.module)
    expected = output.bias if output.bias is not None else torch.zeros(())
    torch.testing.assert_close(wrote, expected.expand_as(wrote))


@pytest.mark.parametrize(("silent", "loud"), [("key", "query"), ("query", "key")])
def test_queries_and_keys_matter_only_together(tiny_model, family, silent, loud):
    model = tiny_model(family)
    block = anatomy(model).blocks[0]
    output = block.projections["attention_output"].module
    _, [(with_both, _)] = forward(model, output)
    zero(*role_in_attention(block, silent))
    _, [(before, _)] = forward(model, output)
    scramble(*role_in_attention(block, loud))
    _, [(after, _)] = forward(model, output)
    torch.testing.assert_close(after, before)
    assert not torch.allclose(before, with_both, atol=1e-6)


@pytest.mark.parametrize(("role", "matters"), [("query", False), ("key", True)])
def test_first_query_has_no_choice_and_first_key_is_one(tiny_model, family, role, matters):
    model = tiny_model(family)
    block = anatomy(model).blocks[0]
    projection, rows = role_in_attention(block, role)
    output = block.projections["attention_output"].module
    _, [(before, _)] = forward(model, output)

    def change_first_position(_module, _arguments, projected):
        changed = projected.clone()
        changed[:, 0, rows] += torch.randn(len(rows), generator=torch.Generator().manual_seed(4))
        return changed

    projection.module.register_forward_hook(change_first_position)
    _, [(after, _)] = forward(model, output)
    assert torch.allclose(after, before, atol=1e-6) != matters


@pytest.mark.parametrize("role", ["query", "key", "value"])
@pytest.mark.parametrize("fused", FUSED)
def test_rows_of_one_head_reach_only_the_heads_that_read_it(tiny_model, fused, role):
    model = tiny_model(fused)
    block = anatomy(model).blocks[0]
    projection, rows = role_in_attention(block, role)
    heads = len(rows) // HEAD_DIM
    output = block.projections["attention_output"].module
    for head in range(heads):
        _, [(before, _)] = forward(model, output)
        scramble(projection, rows[head * HEAD_DIM : (head + 1) * HEAD_DIM])
        _, [(after, _)] = forward(model, output)
        changed = (before - after).unflatten(-1, (HEADS, HEAD_DIM)).abs().amax(dim=(0, 1, 3)) > 1e-6
        readers = HEADS // heads
        assert changed.nonzero().flatten().tolist() == list(range(head * readers, (head + 1) * readers))


def test_fused_rows_cover_the_matrix_once(tiny_model, family):
    for block in anatomy(tiny_model(family)).blocks:
        for role, projection in block.projections.items():
            assert bool(projection.rows) == (role in ("qkv", "gate_up"))
            if projection.rows:
                rows = torch.cat(list(projection.rows.values()))
                assert rows.sort().values.tolist() == list(range(projection.matrix.shape[-2]))


@pytest.mark.parametrize(("role", "is_linear"), [("up", True), ("gate", False)])
def test_experts_are_linear_in_up_and_not_in_gate(tiny_model, role, is_linear):
    model = tiny_model("mixtral")
    block = anatomy(model).blocks[0]
    _, [(_, before)] = forward(model, block.mlp.module)
    gate_up = block.projections["gate_up"]
    with torch.no_grad():
        gate_up.matrix[:, gate_up.rows[role]] *= 2
    _, [(_, after)] = forward(model, block.mlp.module)
    assert torch.allclose(after, 2 * before, rtol=1e-4, atol=1e-6) == is_linear


def test_caps_and_scales_are_those_of_the_config(tiny_model, family):
    parts = anatomy(tiny_model(family))
    assert parts.logit_soft_cap == (0.5 if family == "gemma2" else None)
    assert parts.logit_scale == (0.25 if family == "cohere" else 1.0)


def test_unknown_family_is_named():
    config = AutoConfig.for_model("gptj", vocab_size=32, n_embd=16, n_layer=1, n_head=2, rotary_dim=4)
    model = AutoModelForCausalLM.from_config(config)
    for walk in (anatomy, linear_layers):
        with pytest.raises(PerplabError, match="gptj"):
            walk(model)


def test_missing_part_is_named_with_its_family_and_path(tiny_model):
    model = tiny_model("llama")
    del model.model.layers[1].mlp.up_proj
    with pytest.raises(PerplabError, match=r"llama model has no model\.layers\.1\.mlp\.up_proj"):
        anatomy(model)


def test_bloom_that_adds_to_its_normed_stream_is_refused(tiny_model):
    model = tiny_model("bloom")
    model.config.apply_residual_connection_post_layernorm = True
    with pytest.raises(PerplabError, match="apply_residual_connection_post_layernorm"):
        anatomy(model)
