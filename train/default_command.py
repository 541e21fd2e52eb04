"""A click group that is also a command: without a subcommand it runs its first one."""

import click


class DefaultCommandGroup(click.Group):
    """`group --option` is `group DEFAULT --option`, and the help shows the options of DEFAULT."""

    default: click.Command

    def set_default(self, command: click.Command) -> None:
        self.default = command
        self.add_command(command)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {*self.commands, *ctx.help_option_names}
        if not args or args[0] not in own:
            args = [str(self.default.name), *args]
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.default.format_options(ctx, formatter)
        self.format_commands(ctx, formatter)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return ["[COMMAND]", "[OPTIONS]"]
