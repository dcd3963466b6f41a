import java.nio.file.Path;
import java.util.Map;
import org.elasticsearch.common.logging.LogConfigurator;
import org.elasticsearch.common.settings.Settings;
import org.elasticsearch.env.Environment;
import org.elasticsearch.node.Node;
import org.elasticsearch.plugins.PluginsLoader;

/** One Elasticsearch node on loopback: StartElasticsearch FOLDER MODULES HTTP_PORT TRANSPORT_PORT NAME=VALUE... */
public class StartElasticsearch {
    public static void main(String[] args) throws Exception {
        Path folder = Path.of(args[0]).toAbsolutePath();
        Settings.Builder settings = Settings.builder()
            .put("path.home", folder)
            .put("path.repo", folder.resolve("snapshots"))
            .put("cluster.name", "fettler-tests")
            .put("node.name", "node-1")
            .put("discovery.type", "single-node")
            .put("network.host", "127.0.0.1")
            .put("http.port", args[2])
            .put("transport.port", args[3]);
        for (int at = 4; at < args.length; at++) {
            String[] setting = args[at].split("=", 2);
            settings.put(setting[0], setting[1]);
        }
        LogConfigurator.configureWithoutConfig(settings.build());
        Environment environment = new Environment(settings.build(), folder.resolve("config"));
        PluginsLoader plugins = PluginsLoader.createPluginsLoader(
            PluginsLoader.loadModulesBundles(Path.of(args[1])),
            PluginsLoader.loadPluginsBundles(folder.resolve("plugins")),
            Map.of());
        new Node(environment, plugins).start();
        Thread.currentThread().join();
    }
}
