from .pictures import draw_pictures as draw_pictures
