"""The wording of every question the demo model knows about pictures: the one list of them."""

from inference.demo.vocabulary import Language

Templates = dict[Language, tuple[str, ...]]

QUESTIONS: dict[str, Templates] = {
    "describe": {
        "en": (
            "What is in this image?",
            "Describe this image.",
            "What do you see?",
            "What is shown in this picture?",
            "Describe the picture.",
            "What's in the image?",
            "Please describe this image.",
            "What is this?",
        ),
        "zh": (
            "请描述这张图片",
            "请描述这张图片。",
            "描述这张图片",
            "图片里有什么？",
            "图中有什么？",
            "这张图片里有什么？",
            "这是什么？",
        ),
    },
    "color": {
        "en": (
            "What color is the {shape}?",
            "What is the color of the {shape}?",
            "Which color does the {shape} have?",
            "What colour is the {shape}?",
        ),
        "zh": ("{shape}是什么颜色？", "{shape}是什么颜色的？", "图中的{shape}是什么颜色？"),
    },
    "shape": {
        "en": (
            "What shape is {color}?",
            "Which shape is {color}?",
            "What is the {color} shape?",
            "What shape is the {color} object?",
        ),
        "zh": ("{color}的是什么形状？", "{color}的图形是什么形状？", "哪个图形是{color}的？"),
    },
    "only_color": {
        "en": ("What color is the shape?", "What color is it?", "What color is the object?"),
        "zh": ("图形是什么颜色？", "这个图形是什么颜色的？", "这是什么颜色？"),
    },
    "only_shape": {
        "en": ("What shape is it?", "What shape is this?", "What is the shape?"),
        "zh": ("这是什么形状？", "图中是什么形状？"),
    },
    "count": {
        "en": (
            "How many shapes are there?",
            "How many shapes are in the image?",
            "Count the shapes.",
            "How many objects are there?",
        ),
        "zh": ("有几个图形？", "图中有几个图形？", "图片里有多少个图形？"),
    },
    "place": {
        "en": (
            "Where is the {thing}?",
            "Where in the image is the {thing}?",
            "What is the position of the {thing}?",
        ),
        "zh": ("{thing}在哪里？", "{thing}在图片的什么位置？", "{thing}在什么位置？"),
    },
    "exist": {
        "en": (
            "Is there a {thing}?",
            "Is there a {thing} in the image?",
            "Do you see a {thing}?",
            "Does the image show a {thing}?",
        ),
        "zh": ("有{thing}吗？", "图中有{thing}吗？", "图片里有没有{thing}？"),
    },
    "box": {
        "en": (
            "Where is the {thing}? Answer with a bounding box.",
            "Locate the {thing}.",
            "Give the bounding box of the {thing}.",
            "Locate the {thing} and output its bounding box in JSON.",
            "Detect the {thing}.",
        ),
        "zh": (
            "框出{thing}",
            "用边界框标出{thing}的位置。",
            "请给出{thing}的边界框。",
            "检测{thing}",
        ),
    },
    "background": {
        "en": (
            "What is the background color?",
            "What color is the background?",
            "What is the color of the background?",
        ),
        "zh": ("背景是什么颜色？", "背景颜色是什么？", "图片的背景是什么颜色的？"),
    },
    "number": {
        "en": (
            "What number is shown?",
            "What number is in the image?",
            "Which number do you see?",
            "Read the number.",
        ),
        "zh": ("图中的数字是什么？", "图片上是什么数字？", "读出数字。"),
    },
    "word": {
        "en": (
            "What word is shown?",
            "What word is in the image?",
            "Which word do you see?",
            "Read the word.",
        ),
        "zh": ("图中的单词是什么？", "图片上是什么单词？", "读出单词。"),
    },
    "text": {
        "en": (
            "Read the text.",
            "What does the text say?",
            "What text is shown?",
            "What is written here?",
            "Read the text in the image.",
        ),
        "zh": ("读出图中的文字。", "图中写了什么？", "图片上的文字是什么？"),
    },
    "ink": {
        "en": ("What color is the {text_kind}?", "What is the color of the {text_kind}?"),
        "zh": ("{text_kind}是什么颜色？", "{text_kind}是什么颜色的？"),
    },
    "same": {
        "en": (
            "Are the two images the same?",
            "Do both images show the same thing?",
            "Are these pictures the same?",
            "Is the second image the same as the first?",
        ),
        "zh": ("两张图片一样吗？", "这两张图片相同吗？", "两张图一样吗？"),
    },
    "same_color": {
        "en": ("Do both shapes have the same color?", "Is the color the same in both images?"),
        "zh": ("两张图片的图形颜色一样吗？", "两个图形颜色相同吗？"),
    },
    "same_shape": {
        "en": ("Do both images show the same shape?", "Is the shape the same in both images?"),
        "zh": ("两张图片的图形形状一样吗？", "两个图形形状相同吗？"),
    },
    "which": {
        "en": (
            "What is in the {which} image?",
            "Describe the {which} image.",
            "What does the {which} picture show?",
        ),
        "zh": ("{which}张图片里有什么？", "请描述{which}张图片。", "{which}张图是什么？"),
    },
}
