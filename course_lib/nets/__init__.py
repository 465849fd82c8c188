"""Networks: they map tensors to tensors and know no model and no loss.

- `course_lib.nets.mlp`: fully connected; `TimeMLP` for points at a time.
- `course_lib.nets.convolutional`: an encoder of images into a grid of vectors, and its mirror image.
- `course_lib.nets.dcgan`: images from noise, and their judge.
- `course_lib.nets.pixelcnn`: masked convolutions, for grids of codes in reading order.
- `course_lib.nets.unet`: images to images at a time, given a label or a text; for every kind of diffusion.
- `course_lib.nets.dit`: the same by a transformer over patches.
- `course_lib.nets.embeddings`: times, places and labels as vectors.

A network of a time is called as ``net(x, t)``, and with labels as ``net(x, t, y)``: x and t have one row a
sample, and x the dtype of the network's weights. Times lie in [0, 1] unless a denoiser scales them.
"""
