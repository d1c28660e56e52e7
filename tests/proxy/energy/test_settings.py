from proxy.energy.settings import Settings

GPU = "h1/gpu:0"


def test_a_device_that_nobody_set_is_as_it_was_found() -> None:
    settings = Settings()
    assert settings.now(GPU) == "" and settings.during(GPU, 5.0, 6.0) == ""


def test_a_window_belongs_to_the_setting_that_was_in_force_all_through_it() -> None:
    settings = Settings()
    settings.change(GPU, 100.0, "300 W")
    settings.change(GPU, 200.0, "300 W")
    settings.change(GPU, 300.0, "")
    assert settings.during(GPU, 99.0, 100.0) == ""
    assert settings.during(GPU, 99.5, 100.5) is None, "it changed meanwhile"
    assert settings.during(GPU, 100.5, 101.0) is None, "what is set takes its time"
    assert settings.during(GPU, 101.0, 101.5) == "300 W"
    assert settings.during(GPU, 199.5, 200.5) == "300 W", "told again is not changed"
    assert settings.during(GPU, 299.0, 300.5) is None
    assert settings.during(GPU, 301.0, 302.0) == "" == settings.now(GPU)
    assert settings.during("h1/gpu:1", 101.0, 102.0) == ""


def test_what_is_long_past_is_forgotten_and_the_setting_in_force_is_not() -> None:
    settings = Settings()
    for hour in range(10):
        settings.change(GPU, 4000.0 * hour, f"{300 + hour} W")
    assert len(settings._changes[GPU]) <= 3
    assert settings.during(GPU, 36_100.0, 36_101.0) == "309 W"
    assert settings.during(GPU, 35_000.0, 35_001.0) == "308 W"
