"""The web page: one video, captioned without saliency, with a student's maps and with a teacher's, side by side."""
