"""What is said, and what is not said again."""

from __future__ import annotations

from needle.base.news import FOR_EVER, SAID_SECONDS, News


def test_the_same_is_news_again_only_after_a_while() -> None:
    news = News()
    assert news.is_news("a", 0.0)
    assert news.is_news("b", 1.0)
    assert not news.is_news("a", SAID_SECONDS - 0.1)
    assert news.is_news("a", SAID_SECONDS)
    assert not news.is_news("a", SAID_SECONDS + 1.0)
    assert not news.is_news("b", SAID_SECONDS + 0.9)


def test_what_was_told_of_longest_ago_is_forgotten_first() -> None:
    news = News(60.0, keys_max=3)
    for now, key in enumerate("abc"):
        assert news.is_news(key, float(now))
    assert news.is_news("a", 60.0)  # told of again: b is the oldest now
    assert news.is_news("d", 60.5)
    assert not news.is_news("a", 60.6)
    assert not news.is_news("c", 60.7)
    assert news.is_news("b", 60.8)
    for key in range(1000):
        news.is_news(key, 61.0)
    assert len(news._said) == 3


def test_with_one_place_whatever_is_not_as_the_last_time_is_news() -> None:
    news = News(FOR_EVER, keys_max=1)
    assert [news.is_news(key) for key in "aabbaba"] == [True, False, True, False, True, True, True]
