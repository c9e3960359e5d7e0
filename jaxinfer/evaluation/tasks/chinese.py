"""Sentences said in the other language: English to Chinese and back."""

from __future__ import annotations

import random
from typing import NamedTuple

from jaxinfer.evaluation.extract import last_line
from jaxinfer.evaluation.item import Item, Kind, Split
from jaxinfer.evaluation.tasks.wording import user, wrapped


class Word(NamedTuple):
    """The same word in both languages."""

    english: str
    chinese: str


def _words(text: str) -> tuple[Word, ...]:
    return tuple(Word(*entry.strip().split("=")) for entry in text.split(";"))


ADJECTIVES = _words(
    "red=红色的;blue=蓝色的;green=绿色的;yellow=黄色的;black=黑色的;white=白色的;big=大的;small=小的;old=老的;young=年轻的;"
    "happy=快乐的;tired=疲倦的;hungry=饥饿的;quiet=安静的;clever=聪明的;brave=勇敢的"
)
ANIMALS = _words(
    "cat=猫;dog=狗;bird=鸟;horse=马;cow=牛;sheep=羊;fish=鱼;mouse=老鼠;rabbit=兔子;fox=狐狸;bear=熊;wolf=狼;"
    "duck=鸭子;frog=青蛙;tiger=老虎;lion=狮子;monkey=猴子;elephant=大象;chicken=鸡;pig=猪"
)
ACTIONS = _words(
    "sleeps=睡觉;eats=吃饭;plays=玩;sings=唱歌;dances=跳舞;waits=等待;rests=休息;reads=读书;works=工作;runs=跑步;"
    "swims=游泳;laughs=笑;drinks tea=喝茶;writes a letter=写信"
)
PLACES = _words(
    "in the garden=花园里;in the house=房子里;in the forest=森林里;at school=学校里;at the market=市场上;"
    "by the river=河边;on the mountain=山上;in the kitchen=厨房里;on the boat=船上;"
    "under the tree=树下;in the city=城市里;"
    "in the park=公园里;by the sea=海边;on the roof=屋顶上"
)
TIMES = _words(
    "today=今天;in the morning=早上;in the evening=晚上;every day=每天;on Sunday=星期天;"
    "in summer=夏天;in winter=冬天;now=现在"
)


def _sentence(rng: random.Random) -> tuple[str, str]:
    adjective, animal = rng.choice(ADJECTIVES), rng.choice(ANIMALS)
    action, place = rng.choice(ACTIONS), rng.choice(PLACES)
    english = f"The {adjective.english} {animal.english} {action.english} {place.english}"
    chinese = f"{adjective.chinese}{animal.chinese}在{place.chinese}{action.chinese}"
    if rng.random() < 0.5:
        time = rng.choice(TIMES)
        return f"{english} {time.english}.", f"{time.chinese}{chinese}。"
    return f"{english}.", f"{chinese}。"


def _chinese(rng: random.Random, split: Split) -> Item:
    english, chinese = _sentence(rng)
    if rng.random() < 0.6:
        questions = (
            f"Say this in Chinese: {english}",
            f"Translate into Chinese: {english}",
            f"{english} How do you say that in Chinese?",
            f"用中文说：{english}",
            f"请翻译成中文：{english}",
            f"What is this in Chinese? {english}",
        )
        answer, response = chinese.removesuffix("。"), chinese
    else:
        questions = (
            f"Say this in English: {chinese}",
            f"Translate into English: {chinese}",
            f"用英文说：{chinese}",
            f"请翻译成英文：{chinese}",
            f"{chinese} What does that mean?",
            f"What is this in English? {chinese}",
        )
        answer, response = english.removesuffix("."), english
    return Item("chinese", english, user(wrapped(rng, questions)), answer, response)


KINDS = (Kind("chinese", "a sentence from English to Chinese or back", _chinese, last_line),)
