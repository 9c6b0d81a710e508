"""The parts of ``compass_ray.plan``: what there is, what is done already, what training takes."""
