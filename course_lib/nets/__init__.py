"""Networks: they map tensors to tensors and know no model and no loss."""
