"""Lab 4 solved: what replaces the cells of the notebook that have these names."""

# %% cell-03
guess = 20.0

# %% cell-05
from workbench.teaching.calculator import Calculator


class MyPrediction(Calculator):
    """What one further token takes."""

    def weights(self, shape):
        queries_and_output = 2 * shape.hidden * shape.heads * shape.head
        keys_and_values = 2 * shape.hidden * shape.kv_heads * shape.head
        mlp = 3 * shape.hidden * shape.mlp
        return shape.layers * (queries_and_output + keys_and_values + mlp) + shape.hidden * shape.vocabulary

    def weight_bytes(self, shape):
        return self.weights(shape) * shape.bytes_each

    def flops(self, shape):
        return 2 * self.weights(shape)

    def cache_bytes(self, shape):
        return 2 * shape.layers * shape.kv_heads * shape.head * shape.bytes_each * shape.context

    def seconds(self, shape):
        return (self.weight_bytes(shape) + self.cache_bytes(shape)) / shape.bandwidth
