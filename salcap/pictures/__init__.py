"""Pictures of where people look in a video, and of what a captioner keeps of it: a video, or a contact sheet."""

from salcap.pictures.draw import SHOWS, Drawing, draw_saliency

__all__ = ["SHOWS", "Drawing", "draw_saliency"]
